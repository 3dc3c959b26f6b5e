"""Readers of file formats: HDF5, NPZ, MATLAB 5, tar, images."""
