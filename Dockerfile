# The image of the controller and of every worker: one program, on Debian's glibc, without a shell.
#
#   docker build -t REGISTRY/stagepost:0.1.0 .
#
# `packaging/image` packs a binary that is built already, without an engine.

FROM docker.io/library/rust:1.90-bookworm AS build
WORKDIR /src
# Only what the binary is made of (Cargo wants the benches to be there, too): a change of docs or tests builds nothing anew.
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
# The caches outlive the layer, so the binary is taken out of them: without debug information, which is most of it.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin stagepost && strip -g -o /usr/local/bin/stagepost target/release/stagepost

# Holds the C library, CA certificates and the user 65532. Debian 12 in both stages: the binary asks for no newer glibc.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="stagepost" \
      org.opencontainers.image.description="Store-and-forward messaging for Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /usr/local/bin/stagepost /usr/local/bin/stagepost
# As a number: runAsNonRoot can't judge a name.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/stagepost"]
