# Stage `ci` runs every check on a clean machine:   docker build --target ci .
# Stage `runtime` holds the light runtime alone:    docker build --target runtime -t drivekd .
FROM python:3.11-slim-bookworm AS base
RUN apt-get update && apt-get install -y --no-install-recommends g++ make git && rm -rf /var/lib/apt/lists/*
WORKDIR /drivekd

FROM base AS ci
COPY . .
RUN .ci/run

FROM python:3.11-slim-bookworm AS runtime
WORKDIR /drivekd
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[ort]'
ENTRYPOINT ["drivekd"]
CMD ["--help"]
