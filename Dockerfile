# Targets: cpu (default), cuda, sbom. Builds with BuildKit and with buildah; docs/deployment.md has the commands.
# A base is given with its digest; both architectures stand behind this one.
ARG BASE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE} AS tools
COPY deploy/image/build.lock /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --no-compile --require-hashes --only-binary :all: --target /tools -r /build/build.lock
ENV PYTHONPATH=/tools

# This project as a wheel: no network, no build isolation, nothing that the lock does not name. The modules in C may
# run on any processor of its architecture; were one not compiled, the build would end here.
FROM tools AS wheel
WORKDIR /source
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY service service
COPY model_export model_export
RUN SOURCE_DATE_EPOCH=315532800 \
    CC="python -m ziglang cc -mcpu=baseline" LDSHARED="python -m ziglang cc -mcpu=baseline -shared" \
    python -m pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /wheel .

FROM tools AS sbom-made
COPY deploy/image/runtime.lock pyproject.toml /build/
RUN python -m cyclonedx_py requirements --pyproject /build/pyproject.toml --mc-type application --output-reproducible \
    --of JSON -o /sbom.json /build/runtime.lock

FROM scratch AS sbom
COPY --from=sbom-made /sbom.json /sbom.json

FROM ${BASE} AS cpu-packages
COPY deploy/image/runtime.lock /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --no-compile --require-hashes --only-binary :all: \
    --target /opt/lengthwise/packages -r /build/runtime.lock
COPY --from=wheel /wheel /wheel
COPY deploy/image/assemble.py /build/
RUN python -m pip install --no-cache-dir --no-compile --no-index --no-deps --target /opt/lengthwise/program /wheel/*.whl \
    && export PYTHONPATH=/opt/lengthwise/program:/opt/lengthwise/packages \
    && python /build/assemble.py packages /opt/lengthwise/packages \
    && python /build/assemble.py packages /opt/lengthwise/program \
    && mv /opt/lengthwise/program/lengthwise/models /models

FROM ${BASE} AS cuda-packages
COPY deploy/image/cuda.lock /build/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --no-compile --require-hashes --only-binary :all: \
    --target /opt/lengthwise/packages -r /build/cuda.lock
COPY --from=cpu-packages /opt/lengthwise/program /opt/lengthwise/program
COPY deploy/image/assemble.py /build/
RUN PYTHONPATH=/opt/lengthwise/program:/opt/lengthwise/packages \
    python /build/assemble.py packages /opt/lengthwise/packages

# What both images share: the interpreter without its installers, and how the service is run.
FROM ${BASE} AS runtime
ENV PYTHONPATH=/opt/lengthwise/program:/opt/lengthwise/packages \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HF_HUB_DISABLE_XET=1 \
    LENGTHWISE_HOST=0.0.0.0 \
    LENGTHWISE_CACHE=/cache \
    LENGTHWISE_MODELS=/models
RUN --mount=type=bind,from=cpu-packages,source=/opt/lengthwise,target=/opt/lengthwise \
    --mount=type=bind,source=deploy/image/assemble.py,target=/assemble.py \
    python /assemble.py interpreter
COPY deploy/image/healthcheck.py deploy/image/fetch_models.py /opt/lengthwise/
WORKDIR /
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-S", "/opt/lengthwise/healthcheck.py"]
ENTRYPOINT ["python", "-P", "-m", "lengthwise"]
CMD ["serve"]
ARG VERSION=0
ARG REVISION=unknown
ARG SOURCE=
LABEL org.opencontainers.image.title="Lengthwise" \
      org.opencontainers.image.description="Serves classifiers of variable-length sequences: padding cannot reach an answer" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"

# The models stand in a layer of their own; a volume on /models takes their place.
FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/opt/lengthwise/packages/nvidia/cu13/lib:/opt/lengthwise/packages/nvidia/cudnn/lib
COPY --from=cuda-packages /opt/lengthwise/packages /opt/lengthwise/packages
COPY --from=cpu-packages /opt/lengthwise/program /opt/lengthwise/program
COPY --from=cpu-packages /models /models

FROM runtime AS cpu
COPY --from=cpu-packages /opt/lengthwise/packages /opt/lengthwise/packages
COPY --from=cpu-packages /opt/lengthwise/program /opt/lengthwise/program
COPY --from=cpu-packages /models /models
