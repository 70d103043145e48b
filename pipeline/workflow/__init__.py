"""Run folders and the stages in them: DVC computes each distinct stage once, whatever run asks for it."""

from pipeline.workflow.run import resume, run_job, settle

__all__ = ["resume", "run_job", "settle"]
