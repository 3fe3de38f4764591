# A static binary and the authorities to trust for AWS, and nothing else: no shell, no package, no user that could log in.
#
#   docker build -t REGISTRY/ecr-injector:0.1.0 .
FROM rust:1.95-alpine AS build
RUN apk add --no-cache build-base ca-certificates
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
# Targets that Cargo.toml names have to be there, though they aren't built.
COPY benches benches
COPY examples examples
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --locked --release --bin ecr-injector && cp target/release/ecr-injector /ecr-injector

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# In the PATH that container runtimes set, so that `kubectl exec … -- ecr-injector refresh --once` finds it.
COPY --from=build /ecr-injector /usr/local/bin/ecr-injector
USER 65532:65532
EXPOSE 8443 8080
ENTRYPOINT ["/usr/local/bin/ecr-injector"]
CMD ["serve"]
