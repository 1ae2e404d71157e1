# What decides the dependencies: the manifests of all members, with empty sources.
FROM rust:1.95-bookworm AS manifests
WORKDIR /src
COPY . .
RUN find . -type f ! -name Cargo.toml ! -name Cargo.lock -delete \
    && for manifest in $(find . -name Cargo.toml); do \
         src=$(dirname "$manifest")/src; \
         mkdir -p "$src"; echo '//! Empty.' > "$src/lib.rs"; echo 'fn main() {}' > "$src/main.rs"; \
       done


FROM rust:1.95-bookworm AS build
WORKDIR /src

# The dependencies change less often than the code: they are a layer of their own.
COPY --from=manifests /src .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo build --profile dist --locked -p jarvis --bin jarvis \
    && rm -r target/dist/.fingerprint/jarvis-* target/dist/deps/*jarvis*

COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo build --profile dist --locked -p jarvis --bin jarvis


FROM debian:bookworm-slim

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="jarvis" \
      org.opencontainers.image.description="A chat service in front of Ollama whose answers survive the replica that writes them" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# For rediss:// and for outside issuers of tokens. Copied, so that this stage needs no network.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/dist/jarvis /usr/local/bin/jarvis

# A number, as Kubernetes can't tell whether a name is root.
USER 10001:10001
# The allocator (mimalloc) gives the memory of closed sockets back soon: by default a thread looks for
# unused pages only every 10,000 times that it needs a new one.
ENV JARVIS_LISTEN=0.0.0.0:10200 \
    JARVIS_LOG_FORMAT=json \
    MIMALLOC_GENERIC_COLLECT=100 \
    MIMALLOC_PURGE_DELAY=100
EXPOSE 10200
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["jarvis", "health"]
ENTRYPOINT ["jarvis"]
CMD ["serve"]
