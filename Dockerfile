# syntax=docker/dockerfile:1
# Two images: `cpu` (ONNX Runtime, no torch) and `gpu` (that, and torch, with CUDA from wheels; the host needs NVIDIA's driver and
# container toolkit). Layers, from the one that changes least: interpreter, libraries, tapline itself with its checkpoints.
#   docker build --target cpu -t tapline:cpu .
#   docker build --target gpu -t tapline:gpu .
#   docker build --target cpu --build-arg EXTRAS='drift kafka parquet postgresql ui' -t tapline:cpu .   # 170 MB more: Parquet
ARG PYTHON=3.12-slim-bookworm
ARG EXTRAS="drift kafka postgresql ui"

# What builds: an environment with pip, which no image holds.
FROM python:${PYTHON} AS builder
WORKDIR /src
COPY constraints.txt ./
RUN python -m venv /opt/builder \
    && /opt/builder/bin/pip install --no-cache-dir --constraint constraints.txt pip hatchling hatch-vcs cyclonedx-bom
COPY deploy/requirements.py pyproject.toml ./

FROM builder AS wheel
COPY README.md LICENSE NOTICE.md ./
COPY models models
COPY service service
COPY training training
COPY src src
COPY zeek/scripts zeek/scripts
# The version that the image says it is, of a release: `--build-arg VERSION=1.2.3`.
ARG VERSION
RUN SETUPTOOLS_SCM_PRETEND_VERSION=${VERSION} /opt/builder/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheel .

FROM builder AS libraries-cpu
ARG EXTRAS
RUN python -m venv --without-pip /opt/tapline \
    && /opt/builder/bin/python requirements.py cpu ${EXTRAS} > requirements.txt \
    && /opt/builder/bin/pip --python /opt/tapline/bin/python install --no-cache-dir --constraint constraints.txt -r requirements.txt

FROM libraries-cpu AS own-cpu
COPY LICENSE NOTICE.md ./
COPY --from=wheel /wheel /wheel
RUN /opt/builder/bin/pip --python /opt/tapline/bin/python install --no-cache-dir --no-deps --prefix /own /wheel/*.whl \
    && cp -r /own/. /opt/tapline/ && mkdir -p /own/share/tapline && cp LICENSE NOTICE.md /own/share/tapline/ \
    && /opt/builder/bin/cyclonedx-py environment --output-reproducible -o /own/share/tapline/sbom.cdx.json /opt/tapline/bin/python

FROM python:${PYTHON} AS runtime
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin tapline \
    && install --directory --owner 10001 --mode 0700 /var/lib/tapline
ENV PATH=/opt/tapline/bin:$PATH TAPLINE_DATA_DIR=/var/lib/tapline/data PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
# Asks the port and by TLS as process 1 listens, whatever its flags say.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-m", "tapline.service.command.health"]
ENTRYPOINT ["tapline"]
# Loopback only, as everywhere: publish it with `--host 0.0.0.0` and a key (TAPLINE_API_KEY), or share a network namespace.
CMD ["serve"]
LABEL org.opencontainers.image.title="tapline" \
      org.opencontainers.image.description="Deep models on live network traffic" \
      org.opencontainers.image.licenses="BSD-3-Clause"

FROM runtime AS cpu
COPY --from=libraries-cpu /opt/tapline /opt/tapline
# What differs with every build stands below the libraries, whose layer is then the one of the version before.
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
COPY --from=own-cpu /own /opt/tapline

# Below the stages of `cpu`, so that a builder which makes every stage up to its target makes none of these for it.
FROM builder AS libraries-gpu
ARG EXTRAS
RUN python -m venv --without-pip /opt/tapline \
    && /opt/builder/bin/python requirements.py gpu torch ${EXTRAS} > requirements.txt \
    && /opt/builder/bin/pip --python /opt/tapline/bin/python install --no-cache-dir --constraint constraints.txt -r requirements.txt

FROM libraries-gpu AS own-gpu
COPY LICENSE NOTICE.md ./
COPY --from=wheel /wheel /wheel
RUN /opt/builder/bin/pip --python /opt/tapline/bin/python install --no-cache-dir --no-deps --prefix /own /wheel/*.whl \
    && cp -r /own/. /opt/tapline/ && mkdir -p /own/share/tapline && cp LICENSE NOTICE.md /own/share/tapline/ \
    && /opt/builder/bin/cyclonedx-py environment --output-reproducible -o /own/share/tapline/sbom.cdx.json /opt/tapline/bin/python

FROM runtime AS gpu
COPY --from=libraries-gpu /opt/tapline /opt/tapline
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
COPY --from=own-gpu /own /opt/tapline
CMD ["serve", "--engine", "torch"]

# What `docker build .` gives.
FROM cpu
