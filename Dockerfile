# Two stages: the first has uv and builds the environment, the second has only what runs.
FROM ghcr.io/astral-sh/uv:0.13 AS uv

FROM python:3.13-slim-trixie AS build
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
RUN uv venv --python /usr/local/bin/python3 /opt/venv
COPY requirements.lock /build/
RUN --mount=type=cache,target=/root/.cache/uv \
    VIRTUAL_ENV=/opt/venv uv pip install --require-hashes --no-deps -r /build/requirements.lock
ARG TARGET_PACKAGES=""
RUN --mount=type=cache,target=/root/.cache/uv [ -z "$TARGET_PACKAGES" ] || { \
    printf '%s\n' "$TARGET_PACKAGES" > /build/target.txt && VIRTUAL_ENV=/opt/venv \
    uv pip install --no-verify-hashes --constraint /build/requirements.lock -r /build/target.txt; }
COPY slipway /app/slipway
COPY examples /app/examples
COPY server.py /app/
RUN /opt/venv/bin/python -m compileall -q /app

FROM python:3.13-slim-trixie
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
# bytecode is compiled above, and the file system is read-only anyway
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
# what a fresh volume begins with, whoever the container's user is
RUN install -d -m 1777 /state/data
USER 10001:10001
EXPOSE 8000
CMD ["python", "server.py", "http"]
