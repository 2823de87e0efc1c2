# The image of docs/rayjob.yaml: Ray's own with the wheel and the pinned packages. Not built here (no
# Docker); tests build the wheel of what the first stage copies.
FROM rayproject/ray:2.60.0-py311-gpu AS ray

FROM ray AS build
COPY --chown=ray:users pyproject.toml README.md LICENSE /home/ray/source/
COPY --chown=ray:users fmoe /home/ray/source/fmoe
COPY --chown=ray:users pipelines /home/ray/source/pipelines
COPY --chown=ray:users tune_spaces /home/ray/source/tune_spaces
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /home/ray/wheels /home/ray/source

FROM ray
COPY --chown=ray:users constraints.txt /home/ray/
RUN --mount=type=bind,from=build,source=/home/ray/wheels,target=/home/ray/wheels \
    pip install --no-cache-dir -c /home/ray/constraints.txt /home/ray/wheels/*.whl
