# Three images from one file:  docker build --target gateway .   --target worker .   and, for Ray clusters, --target ray .
#
# Every package is checked against the SHA-256 in requirements/hashed. The base images are named by tag. To fix one to its
# digest, append it: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:…  (deploy/gpu.md shows where it is found)

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0

# -- packages: the wheels of this repository, pure Python, for both images
FROM ${PYTHON_IMAGE} AS packages

WORKDIR /src
COPY requirements/hashed/build.txt requirements/hashed/build.txt
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement requirements/hashed/build.txt
COPY client client
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY workers workers
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels ./client .


# -- gateway: HTTP API and event streams; no torch, no engine
FROM ${PYTHON_IMAGE} AS gateway

WORKDIR /app
COPY requirements/hashed/gateway.txt requirements/hashed/gateway.txt
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement requirements/hashed/gateway.txt
RUN --mount=type=bind,from=packages,source=/wheels,target=/wheels pip install --no-cache-dir --no-deps /wheels/*.whl

# The worker's image has the same user, because both write to the data volume. Group 1000 is that of the Redis server,
# which reads its permissions from /secrets.
RUN useradd --uid 10001 --create-home sharecap \
    && install --directory --owner sharecap --mode 700 /data \
    && install --directory --owner sharecap --group 1000 --mode 750 /secrets
USER 10001
VOLUME /data

# The gateway listens on all addresses of its container, so it starts only if an API key exists: see
# `sharecap deploy first-key`.
ENV PYTHONUNBUFFERED=1 HOST=0.0.0.0 PORT=8000 DATA_DIR=/data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["sharecap", "health", "gateway"]
CMD ["python", "-P", "-m", "service"]


# -- worker: one per GPU; torch, CUDA and the engine are part of vLLM's image
FROM ${VLLM_IMAGE} AS worker

WORKDIR /app
COPY requirements/hashed/worker.txt requirements/hashed/worker.txt
RUN uv pip install --system --no-cache --no-deps --require-hashes --requirement requirements/hashed/worker.txt
# vLLM finds the plugin through the entry point of the installed package.
RUN --mount=type=bind,from=packages,source=/wheels,target=/wheels uv pip install --system --no-cache --no-deps /wheels/*.whl

RUN useradd --uid 10001 --create-home sharecap \
    && install --directory --owner sharecap --mode 700 /data /home/sharecap/.cache
USER 10001
VOLUME /data /home/sharecap/.cache

ENV PYTHONUNBUFFERED=1 DATA_DIR=/data VLLM_NO_USAGE_STATS=1
# vLLM's image starts its own server; this one takes jobs from the queue.
ENTRYPOINT []
CMD ["python3", "-P", "-m", "workers.main"]


# -- ray: the worker's packages and Ray, for the hosts of a Ray cluster (docs/ray.md)
FROM worker AS ray

USER root
# KubeRay checks with wget whether Ray is alive.
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
COPY requirements/hashed/ray-cluster.txt requirements/hashed/ray-cluster.txt
RUN uv pip install --system --no-cache --no-deps --require-hashes --requirement requirements/hashed/ray-cluster.txt
USER 10001
CMD ["bash"]
