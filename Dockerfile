# The image of docs/rayjob.yaml: Ray's own with the pinned packages. Not built here (no Docker).
FROM rayproject/ray:2.60.0-py311-gpu
COPY --chown=ray:users pyproject.toml constraints.txt README.md LICENSE /home/ray/fmoe/
COPY --chown=ray:users fmoe /home/ray/fmoe/fmoe
COPY --chown=ray:users pipelines /home/ray/fmoe/pipelines
COPY --chown=ray:users tune_spaces /home/ray/fmoe/tune_spaces
RUN pip install --no-cache-dir -c /home/ray/fmoe/constraints.txt /home/ray/fmoe
