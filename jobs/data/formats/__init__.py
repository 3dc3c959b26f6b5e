"""Readers of file formats: published files, IDX, HDF5, NPZ, MATLAB 5, tar, images. A damaged file is a UserError."""
