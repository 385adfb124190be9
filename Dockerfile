# bert-xla in a container. docs/gke.md tells how it runs on GKE, docs/tpu-vm.md how on a TPU VM. Both stages are of one
# Debian, so that the program finds the glibc that it was linked against.

FROM rust:1.95-bookworm AS build
WORKDIR /src
# The benchmark is only named by the manifest, and assets/ is in the program.
COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY assets assets
COPY src src
# What was fetched and built stays beside the image, for the next build; the program itself has to leave it.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin bert-xla \
    && install -D target/release/bert-xla /out/bert-xla

FROM debian:bookworm-slim
# Certificates for Cloud Storage; pip for `bert-xla plugins install`, which runs python3 -m pip; tini, since the first
# process of a container ignores a SIGTERM that it hasn't asked for, as a program does that isn't ready to train yet.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3-pip tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 bert
COPY --from=build /out/bert-xla /usr/local/bin/bert-xla
# By number, for Kubernetes' runAsNonRoot.
USER 1000
WORKDIR /home/bert
# Not by HOME: root, as whom the container may have to run, finds the plugin too.
ENV BERT_XLA_CACHE=/home/bert/.cache/bert-xla
# Which plugins are in the image: none, or several with spaces between. Without the one that a machine wants,
# `bert-xla plugins install` has to be run in the container, which then needs a way to the Python package index.
ARG PLUGINS=tpu
RUN for plugin in $PLUGINS; do bert-xla plugins install "$plugin" || exit 1; done
# Signals reach the program, and its exit status is the container's: 75 where it was stopped and has saved.
ENTRYPOINT ["tini", "--", "bert-xla"]
CMD ["--help"]
