# Two images of one repository:  docker build --target gateway .   and   docker build --target worker .

# -- gateway: HTTP in, events out; no torch, no engine
FROM python:3.11-slim-bookworm AS gateway

WORKDIR /app
COPY requirements/gateway.txt requirements/gateway.txt
RUN pip install --no-cache-dir --no-deps --requirement requirements/gateway.txt
COPY service service

# The same user as in the worker's image, for both write to the data volume.
RUN useradd --uid 10001 --create-home sharecap && install --directory --owner sharecap /data
USER 10001
VOLUME /data

# Only the container's network can reach it; who gets in from outside is decided where its port is published.
ENV PYTHONUNBUFFERED=1 HOST=0.0.0.0 PORT=8000 ALLOW_PUBLIC_BIND=true DATA_DIR=/data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "service"]


# -- worker: one per GPU; torch, CUDA and the engine come with vLLM's own image
FROM vllm/vllm-openai:v0.32.0 AS worker

WORKDIR /app
COPY requirements/worker.txt requirements/worker.txt
RUN uv pip install --system --no-cache --no-deps --requirement requirements/worker.txt
# The plugin is found through the installed package's entry point.
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY workers workers
RUN uv pip install --system --no-cache --no-deps .

RUN useradd --uid 10001 --create-home sharecap \
    && install --directory --owner sharecap /data /home/sharecap/.cache
USER 10001
VOLUME /data /home/sharecap/.cache

ENV PYTHONUNBUFFERED=1 DATA_DIR=/data VLLM_NO_USAGE_STATS=1
# vLLM's image starts its own server; this one takes jobs from the queue.
ENTRYPOINT []
CMD ["python3", "-m", "workers.main"]
