# A static binary and the authorities to trust for AWS, and nothing else: no shell, no package, no user that could log in.
#
#   docker build -t REGISTRY/ecr-injector:0.1.0 \
#     --build-arg REVISION=$(git rev-parse HEAD) --build-arg CREATED=$(git log -1 --format=%cI) .
#
# `make image` makes the same without a container engine (image/build.sh); tests/image/main.rs compares the two.
FROM rust:1.95-alpine AS build
RUN apk add --no-cache build-base ca-certificates
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
# Targets that Cargo.toml names have to be there, though they aren't built.
COPY benches benches
COPY examples examples
COPY tests/clients/main.rs tests/clients/main.rs
COPY tests/cost/main.rs tests/cost/main.rs
COPY tests/image/main.rs tests/image/main.rs
COPY tests/kubelet/main.rs tests/kubelet/main.rs
ARG REVISION=""
ARG CREATED=""
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    ECR_INJECTOR_COMMIT="$REVISION" ECR_INJECTOR_BUILD_DATE="$CREATED" \
    cargo build --locked --release --bin ecr-injector && cp target/release/ecr-injector /ecr-injector

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# In the PATH that container runtimes set, so that `kubectl exec … -- ecr-injector refresh --once` finds it.
COPY --from=build /ecr-injector /usr/local/bin/ecr-injector
# The repository's URL, the commit, and the commit's time: a build that isn't told leaves these labels empty.
ARG SOURCE=""
ARG REVISION=""
ARG CREATED=""
LABEL org.opencontainers.image.title="ecr-injector" \
      org.opencontainers.image.description="A mutating admission webhook that makes private Amazon ECR images pull on any Kubernetes cluster" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
USER 65532:65532
EXPOSE 8443 8080
ENTRYPOINT ["/usr/local/bin/ecr-injector"]
CMD ["serve"]
