# docker build -t compress . && docker run --rm --network none -v "$PWD:/data" -w /data compress --help
FROM rust:1-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends musl-tools && rustup target add x86_64-unknown-linux-musl
WORKDIR /src
COPY . .
RUN cargo build --locked --release --target x86_64-unknown-linux-musl

# The binary is static and asks for nothing else.
FROM scratch
COPY --from=build /src/target/x86_64-unknown-linux-musl/release/compress /compress
ENTRYPOINT ["/compress"]
