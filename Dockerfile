# syntax=docker/dockerfile:1

# The tag says which Python; a release says which build of it, by digest: docs/deploy.md, "Build the image".
ARG PYTHON_IMAGE=docker.io/library/python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# For `strip`; it stays in this stage.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends binutils \
 && rm -rf /var/lib/apt/lists/*
# Two environments: one that builds, and one without pip that is shipped.
RUN python -m venv /opt/build && python -m venv --without-pip /opt/worker
COPY requirements/ requirements/
# Wheels only, each with its hash: no code of a dependency runs while the image is built.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements/build.lock \
 && /opt/build/bin/pip --python /opt/worker/bin/python install \
      --require-hashes --only-binary :all: --no-compile -r requirements/runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY worker/ worker/
RUN /opt/build/bin/pip wheel --no-build-isolation --no-deps --wheel-dir /wheel . \
 && /opt/build/bin/pip --python /opt/worker/bin/python install \
      --no-index --no-deps --no-compile /wheel/*.whl
# Debug symbols are a third of what the wheels bring; of no use at run time are stubs and sources of extensions.
RUN find /opt/worker -name '*.so' -exec strip --strip-unneeded {} + \
 && find /opt/worker -regextype posix-extended -regex '.*\.(pyi|pyx|pxd|proto|c|h)' -delete \
 && /opt/worker/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/worker/lib

FROM ${PYTHON_IMAGE}
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="nomad-dispatch-worker" \
      org.opencontainers.image.description="Dispatches Nomad parameterized jobs from a Redis stream" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
ENV PATH=/opt/worker/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SOURCE_REVISION=${REVISION}
COPY --from=build /opt/worker /opt/worker
# A number, so that Kubernetes can tell that it is not root.
USER 65532:65532
WORKDIR /tmp
EXPOSE 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
  CMD ["dispatch-worker", "healthcheck"]
ENTRYPOINT ["dispatch-worker"]
CMD ["run"]
