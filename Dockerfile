# syntax=docker/dockerfile:1
# Two images: `cpu` (ONNX Runtime, no torch) and `gpu` (torch with CUDA from its wheels; the host needs NVIDIA's driver and
# container toolkit).
#   docker build --target cpu -t tapline:cpu .
#   docker build --target gpu -t tapline:gpu .
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS source
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY models models
COPY service service
COPY training training
COPY src src
COPY zeek/scripts zeek/scripts

# The version that the image says it is, of a release: `--build-arg VERSION=1.2.3`.
ARG VERSION
ENV SETUPTOOLS_SCM_PRETEND_VERSION=${VERSION}

FROM source AS build-cpu
RUN python -m venv /opt/tapline \
    && /opt/tapline/bin/pip install --no-cache-dir --constraint constraints.txt '.[cpu,parquet,postgresql,ui]'

FROM source AS build-gpu
RUN python -m venv /opt/tapline \
    && /opt/tapline/bin/pip install --no-cache-dir --constraint constraints.txt '.[gpu,torch,parquet,postgresql,ui]'

FROM python:${PYTHON} AS runtime
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin tapline \
    && install --directory --owner 10001 --mode 0700 /var/lib/tapline
ENV PATH=/opt/tapline/bin:$PATH TAPLINE_DATA_DIR=/var/lib/tapline/data PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["tapline"]
# Loopback only, as everywhere: publish it with `--host 0.0.0.0 --api-key KEY`, or share a network namespace.
CMD ["serve"]

FROM runtime AS gpu
COPY --from=build-gpu /opt/tapline /opt/tapline
CMD ["serve", "--engine", "torch"]

FROM runtime AS cpu
COPY --from=build-cpu /opt/tapline /opt/tapline
