# The kernel: one image for every command (api, worker, observe, migrate, serve, …).
#   docker build --tag tabulum-kernel .
# One process on embedded storage; without --volume the data is gone with the container:
#   docker run --publish 127.0.0.1:8080:8080 --volume tabulum:/data tabulum-kernel

FROM node:26.10.0-trixie-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
# No package's scripts run. The only one that has any brings a Node along, and the image has its
# own.
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund

# The page that the observation service serves. What builds it stays here.
FROM node:26.10.0-trixie-slim AS page
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY tsconfig.json ./
COPY src src
RUN node src/observe/build-page.ts

FROM node:26.10.0-trixie-slim
ENV NODE_ENV=production DATA_DIR=/data
# glibc gives the buffers of large requests back to the system instead of keeping them: so a node
# that has a hundred of them at once stays within 512 MiB (test/cluster/large-bodies.test.ts).
ENV MALLOC_ARENA_MAX=2 MALLOC_MMAP_THRESHOLD_=131072 MALLOC_TRIM_THRESHOLD_=131072
# For embedded storage only: `serve` wants a volume here, which takes the owner from here. Nothing
# else is ever written, so there is no VOLUME: every api and worker container would get one.
RUN install --directory --owner=node --group=node --mode=0700 /data
WORKDIR /app
COPY --from=dependencies /app/node_modules node_modules
COPY package.json LICENSE ./
COPY migrations migrations
COPY src src
COPY --from=page /app/src/observe/page/dist src/observe/page/dist
# The user `node`, as a number so that Kubernetes can see that it is not root.
USER 1000:1000
EXPOSE 8080 8090 9090
# Says no while the process starts and while it drains, as for a load balancer. Asked by bash, which
# opens connections itself: starting a Node each time takes some forty times the CPU. Unhealthy
# after a minute only, as Compose says of what is unhealthy that `up` failed, also if it is about to
# be well.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --start-interval=1s --retries=6 \
  CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/${INTERNAL_PORT:-9090} && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && read -r answer <&3 && [[ $answer == *' 200 '* ]]"]
# Without a shell in between, so that SIGTERM reaches the program, which handles it as the first
# process too.
STOPSIGNAL SIGTERM
# By itself V8 lets its heap have half of the memory, and 48 MiB of it for what is new; the buffers
# of requests are beside it.
ENTRYPOINT ["node", "--max-old-space-size-percentage=33", "--max-semi-space-size=8", "src/main.ts"]
CMD ["serve"]
