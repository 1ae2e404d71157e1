# The image holds one static program and the certificates of the public authorities: no shell, no package
# manager, no library that could be outdated. Scanners read the program's crates from a section that
# cargo-auditable writes.
#
#   docker build -t jarvis:0.1.0 --build-arg REVISION=$(git rev-parse HEAD) .
#   docker buildx build --platform linux/amd64,linux/arm64 --sbom=true --push -t REGISTRY/jarvis:0.1.0 .
#
# Every builder of Docker and of Podman can build it, the old one without BuildKit, too.
#
# RUST is the image that compiles: any with a Rust of at least 1.95, a C compiler and the static libraries of
# glibc (libc6-dev). BASE is what the program is put into, for those whose rules want another one than
# nothing, such as gcr.io/distroless/static-debian12.
# PROFILE is how it is compiled: `dist` to be passed on, and `release` where a changed line has to be built
# again within a minute. Each profile has its own layer of dependencies, so the first build with another one
# takes its time.
ARG RUST=rust:1.95-bookworm
ARG BASE=scratch
ARG PROFILE=dist


# The files that decide the dependencies: the manifests of all members, with empty sources.
FROM ${RUST} AS manifests
WORKDIR /src
COPY . .
RUN find . -type f ! -name Cargo.toml ! -name Cargo.lock -delete \
    && for manifest in $(find . -name Cargo.toml); do \
         src=$(dirname "$manifest")/src; \
         mkdir -p "$src"; echo '//! Empty.' > "$src/lib.rs"; echo 'fn main() {}' > "$src/main.rs"; \
       done


FROM ${RUST} AS build
RUN cargo install --locked --root /usr/local cargo-auditable@0.7.7
WORKDIR /src
# With a target named, build scripts and macros are not linked statically.
ENV RUSTFLAGS="-C target-feature=+crt-static"
# Nothing of the first build is left for a second one in a layer.
ENV CARGO_INCREMENTAL=0
ARG PROFILE
RUN rustc -vV | sed -n 's/^host: //p' > /target

# The dependencies change less often than the code: they are a layer of their own.
COPY --from=manifests /src .
RUN cargo auditable build --profile "$PROFILE" --locked --target "$(cat /target)" -p jarvis --bin jarvis \
    && rm -r target/*/"$PROFILE"/.fingerprint/jarvis-* target/*/"$PROFILE"/deps/*jarvis*

COPY . .
# Here, because another revision would make every layer above stale.
ARG REVISION=unknown
# The profile `dist` strips symbols by itself.
RUN JARVIS_REVISION=$REVISION \
    cargo auditable build --profile "$PROFILE" --locked --target "$(cat /target)" -p jarvis --bin jarvis \
    && mv target/*/"$PROFILE"/jarvis /jarvis


FROM ${BASE}

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="jarvis" \
      org.opencontainers.image.description="A chat service in front of Ollama whose answers survive the replica that writes them" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# For rediss:// and for outside issuers of tokens.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /jarvis /usr/local/bin/jarvis

# A number, as Kubernetes cannot check whether a name is root.
USER 10001:10001
# The allocator (mimalloc) gives the memory of closed sockets back soon: by default a thread looks for
# unused pages only every 10,000 times that it needs a new one.
ENV PATH=/usr/local/bin \
    JARVIS_LISTEN=0.0.0.0:10200 \
    JARVIS_LOG_FORMAT=json \
    MIMALLOC_GENERIC_COLLECT=100 \
    MIMALLOC_PURGE_DELAY=0
EXPOSE 10200
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["jarvis", "health"]
ENTRYPOINT ["jarvis"]
CMD ["serve"]
