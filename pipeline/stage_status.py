"""What earlier commands left of each stage. Light: no torch, no Ray."""

from jobs.data.manifest import finished_tasks
from jobs.errors import UserError
from pipeline.plan import StageStatus, missing_input
from pipeline.searches import Search
from pipeline.settings.schema import Stage
from pipeline.workspace import Run, Workspace


def find(workspace: Workspace, stage: Stage) -> StageStatus:
    """What earlier commands left of a stage, for these settings and inputs.

    Raises:
        UserError: the input of the stage is not there, and no requested stage makes it.
    """
    if stage == "shard":
        return _find_shards(workspace)
    dataset = workspace.dataset()
    run = workspace.run(dataset) if dataset else None
    if workspace.config.model_uri:
        return _find_evaluation(workspace, run)
    if dataset and stage == "tune":
        return _find_search(workspace)
    trained = run.read("train") if run else None
    if run and stage == "train":
        return "done" if trained else _find_checkpoints(workspace, run)
    if run is None or trained is None:
        message = missing_input(stage, workspace.config.stage)
        if message:
            raise UserError(message)
        return "nothing"
    scored = run.read("evaluate")
    wanted = {"key": workspace.evaluate_key(), "weights_sha256": trained["weights_sha256"]}
    return "done" if scored and wanted.items() <= scored.items() else "nothing"


def _find_shards(workspace: Workspace) -> StageStatus:
    if "shard" in workspace.config.force:  # whatever there is, damaged or not
        return "nothing"
    if workspace.dataset():
        return "done"
    store = workspace.data_store
    return "partial" if store and finished_tasks(store) else "nothing"


def _find_search(workspace: Workspace) -> StageStatus:
    if "tune" in workspace.config.force:  # whatever there is, damaged or not
        return "nothing"
    return Search(workspace).found


def _find_checkpoints(workspace: Workspace, run: Run) -> StageStatus:
    """Whether an unfinished training has any; one that is to go on must."""
    if run.has_checkpoint:
        return "partial"
    if workspace.config.resume:
        raise UserError(
            f"resume={workspace.config.resume} has no checkpoint in {run.checkpoint_place}: set storage_path= to where it "
            "has, or give the words of the command that began it"
        )
    return "nothing"


def _find_evaluation(workspace: Workspace, run: Run | None) -> StageStatus:
    """Whether a registered version has been evaluated on these data; an alias is looked up later."""
    if run is None:
        if "shard" not in workspace.config.stage:
            raise UserError("evaluate needs shards, and there are none of this data: run stage=shard,evaluate")
        return "nothing"
    scored = run.read("evaluate")
    return "done" if scored and scored["key"] == workspace.evaluate_key() else "nothing"
