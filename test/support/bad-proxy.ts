/**
 * A way to a kernel on which requests are refused for now and answers get lost, for the examples.
 */
import { once } from 'node:events'
import { createServer, request as httpRequest, type RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'

export interface Listening extends AsyncDisposable {
  readonly url: string
}

/** A server of the test's own. */
export async function listen(onRequest: RequestListener): Promise<Listening> {
  const server = createServer(onRequest).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return {
    url: `http://127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      if (!server.listening) return
      server.close()
      server.closeAllConnections()
      await once(server, 'close')
    },
  }
}

export interface BadProxy extends Listening {
  readonly refused: number
  readonly lost: number
  /** Requests that came again sooner than they were told to. */
  readonly impatience: readonly string[]
}

/**
 * Every fourth request is refused for a second; of the others, the answer to the first try of every
 * send gets lost.
 */
export async function startBadProxy(target: string): Promise<BadProxy> {
  let requests = 0
  let refused = 0
  let lost = 0
  const known = new Set<string>()
  const notBefore = new Map<string, number>()
  const impatience: string[] = []
  const listening = await listen(async (request, response) => {
    const body = await text(request)
    const name = `${request.method} ${request.url}`
    const from = `${name} ${request.headers.authorization}`
    if (performance.now() < (notBefore.get(from) ?? 0)) impatience.push(name)
    requests += 1
    if (requests % 4 === 0 && request.url !== '/v1/health') {
      refused += 1
      // A little less than was asked for: clocks of two processes.
      notBefore.set(from, performance.now() + 950)
      const status = refused % 2 === 0 ? 429 : 503
      response
        .writeHead(status, { 'Retry-After': '1' })
        .end('{"error":"unavailable","message":"not now"}')
      return
    }
    const send = `${from} ${body}`
    const loses = name === 'POST /v1/messages' && !known.has(send)
    known.add(send)
    const onward = httpRequest(
      target + request.url,
      { method: request.method, headers: request.headers },
      (answer) => {
        if (loses) {
          lost += 1
          answer.resume().once('end', () => response.destroy())
          return
        }
        response.writeHead(answer.statusCode ?? 500, answer.headers)
        answer.pipe(response)
      },
    )
    onward.once('error', () => response.destroy())
    onward.end(body)
  })
  return {
    ...listening,
    get refused() {
      return refused
    },
    get lost() {
      return lost
    },
    impatience,
  }
}
