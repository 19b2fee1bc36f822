/**
 * A network between two parts that tests can break: connections to its port go on to another one,
 * until they are cut or slowed down.
 */
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { Transform } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'

export interface TcpProxy extends AsyncDisposable {
  readonly host: string
  readonly port: number
  /** Resets all connections, and new ones as soon as they are made. */
  cut(): void
  /**
   * Everything arrives so many milliseconds later, in both directions; also on connections that
   * there are.
   */
  delay(ms: number): void
  /**
   * Nothing arrives any more, or nothing that the target answers, and nobody is told; new
   * connections are made and hear nothing. What was sent meanwhile arrives when it heals.
   */
  hold(what?: 'everything' | 'answers'): void
  /** Neither cut nor slow nor held. Connections that were cut stay so. */
  heal(): void
  /** How many connections go through at the moment. */
  connections(): number
}

/** Starts a proxy on a free port of 127.0.0.1 to another port there. */
export async function startTcpProxy(targetPort: number): Promise<TcpProxy> {
  const sockets = new Set<Socket>()
  let isCut = false
  let delayMs = 0
  const requests = gate()
  const answers = gate()

  /**
   * Holds each piece back for the delay that was set when it came. A piece never overtakes the one
   * before.
   */
  const line = ({ opened }: Gate) =>
    new Transform({
      async transform(piece: Buffer, _encoding, done) {
        if (delayMs > 0) await sleep(delayMs, undefined, { ref: false })
        await opened()
        done(null, piece)
      },
    })
  const join = (one: Socket, other: Socket, way: Gate) => {
    sockets.add(one)
    one.setNoDelay()
    one.pipe(line(way)).pipe(other)
    one.on('error', () => other.resetAndDestroy())
    one.on('close', () => {
      sockets.delete(one)
      if (!one.readableEnded) other.resetAndDestroy()
    })
  }
  const server = createServer({ allowHalfOpen: true }, (client) => {
    if (isCut) {
      client.on('error', () => {})
      client.resetAndDestroy()
      return
    }
    const target = connect({ port: targetPort, host: '127.0.0.1', allowHalfOpen: true })
    join(client, target, requests)
    join(target, client, answers)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')

  const letGo = () => {
    requests.open()
    answers.open()
  }
  const cut = () => {
    isCut = true
    letGo()
    for (const socket of sockets) socket.resetAndDestroy()
  }
  return {
    host: '127.0.0.1',
    port: (server.address() as AddressInfo).port,
    cut,
    delay(ms) {
      delayMs = ms
    },
    hold(what = 'everything') {
      answers.close()
      if (what === 'everything') requests.close()
    },
    heal() {
      isCut = false
      delayMs = 0
      letGo()
    },
    connections: () => sockets.size / 2,
    async [Symbol.asyncDispose]() {
      cut()
      server.close()
      await once(server, 'close')
    },
  }
}

/** What comes one way waits here while it is closed. */
interface Gate {
  open(): void
  close(): void
  /** Resolves when it is open. */
  opened(): Promise<void>
}

function gate(): Gate {
  let closed: PromiseWithResolvers<void> | undefined
  return {
    open() {
      closed?.resolve()
      closed = undefined
    },
    close() {
      closed ??= Promise.withResolvers()
    },
    opened: async () => await closed?.promise,
  }
}
