/**
 * Webhook receivers for tests: real HTTPS servers on loopback, with certificates of a private
 * authority made on the spot, that behave well or in one of the ways that receivers misbehave. And
 * a resolver that says what a test wants.
 */

import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http'
import { createServer as createHttpsServer } from 'node:https'
import { type AddressInfo, createServer as createTcpServer, isIP, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TLSSocket } from 'node:tls'
import { promisify } from 'node:util'

/** A private certificate authority, in a directory of its own that goes away with it. */
export interface TestAuthority extends AsyncDisposable {
  /** For `WEBHOOK_CA_FILE`. */
  readonly caFile: string
  /** A certificate, with its key, for host names and addresses. */
  issue(names: readonly string[]): Promise<{ readonly key: string; readonly cert: string }>
}

/** @throws Error that says what to install, if there is no openssl */
export async function createTestAuthority(): Promise<TestAuthority> {
  const directory = await mkdtemp(join(tmpdir(), 'webhook-authority-'))
  const caFile = join(directory, 'ca.pem')
  const caKeyFile = join(directory, 'ca.key')

  async function certificate(
    name: string,
    key: string,
    cert: string,
    extensions: readonly string[],
    more: string[],
  ) {
    await openssl([
      ...[
        'req',
        '-x509',
        '-newkey',
        'ec',
        '-pkeyopt',
        'ec_paramgen_curve:prime256v1',
        '-nodes',
        '-days',
        '2',
      ],
      ...['-subj', `/CN=${name}`, '-keyout', key, '-out', cert],
      ...extensions.flatMap((extension) => ['-addext', extension]),
      ...more,
    ])
  }

  try {
    await certificate('Test authority', caKeyFile, caFile, ['keyUsage=critical,keyCertSign'], [])
  } catch (error) {
    await rm(directory, { recursive: true })
    throw error
  }
  /** By what they are for: each takes a process of its own to make. */
  const issued = new Map<string, Promise<{ key: string; cert: string }>>()
  const issueFor = async (subjects: string) => {
    const [key, cert] = [
      join(directory, `${issued.size}.key`),
      join(directory, `${issued.size}.pem`),
    ]
    const extensions = ['basicConstraints=critical,CA:FALSE', `subjectAltName=${subjects}`]
    await certificate('Test receiver', key, cert, extensions, ['-CA', caFile, '-CAkey', caKeyFile])
    return { key: await readFile(key, 'utf8'), cert: await readFile(cert, 'utf8') }
  }
  return {
    caFile,
    issue(names) {
      const subjects = names.map((name) => `${isIP(name) > 0 ? 'IP' : 'DNS'}:${name}`).join(',')
      const known = issued.get(subjects) ?? issueFor(subjects)
      issued.set(subjects, known)
      return known
    },
    async [Symbol.asyncDispose]() {
      await rm(directory, { recursive: true, force: true })
    },
  }
}

async function openssl(args: readonly string[]): Promise<void> {
  try {
    await promisify(execFile)('openssl', args)
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') {
      throw new Error(
        'these tests make certificates with openssl 3.0 or later: install it (apt-get install openssl)',
      )
    }
    throw error
  }
}

const OK = 'HTTP/1.1 200 OK\r\n'
const CONTINUE = 'HTTP/1.1 100 Continue\r\n\r\n'
const EMPTY_OK = `${OK}Content-Length: 0\r\n\r\n`

/** An answer as HTTP has it. */
export interface Answer {
  readonly status: number
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: string
}

/**
 * An answer, or one of
 *
 * - `black_hole`: takes the request, never answers
 * - `tls_never_finishes`: accepts the connection, never says a word of TLS
 * - `plain_text`: speaks HTTP where TLS is expected
 * - `reset_on_connect`: resets the connection in the middle of the TLS handshake
 * - `reset`: takes the request, resets the connection
 * - `close`: takes the request, closes the connection in good order
 * - `reset_in_headers`: resets the connection after half of an answer's headers
 * - `slow_headers`: answers a byte of the headers at a time
 * - `slow_body`: answers 200, and then a byte of the body at a time
 * - `endless_headers`: answers 200 and headers as fast as they are taken
 * - `endless_body`: answers 200 and a body as fast as it is taken
 * - `endless_chunk_extension`: answers 200 and a body whose first chunk never gets to its content
 * - `endless_blank_lines`: sends line breaks instead of a status line, as fast as they are taken
 * - `interim_storm`: answers 103 as fast as it is taken
 * - `interim_drip`: answers 102 at intervals
 * - `interim_then_ok`: answers 100, 102, 103, 103, 199 and then 200, in several packets
 * - `continue_then_ok`: answers 100, which nobody has asked for, and 200 in one packet
 * - `many_interim_then_ok`: answers 100 a hundred times and then 200
 * - `too_many_interim`: answers 100 a hundred and one times and then 200
 * - `not_http`: answers something that is not HTTP
 * - `switch_protocols`: answers 101 to a request that asked for no other protocol
 * - `bare_101`: the same, without a word of which
 * - `two_answers`: answers 200 twice to the one request
 */
export type Behaviour =
  | Answer
  | 'black_hole'
  | 'tls_never_finishes'
  | 'plain_text'
  | 'reset_on_connect'
  | 'reset'
  | 'close'
  | 'reset_in_headers'
  | 'slow_headers'
  | 'slow_body'
  | 'endless_headers'
  | 'endless_body'
  | 'endless_chunk_extension'
  | 'endless_blank_lines'
  | 'interim_storm'
  | 'interim_drip'
  | 'interim_then_ok'
  | 'continue_then_ok'
  | 'many_interim_then_ok'
  | 'too_many_interim'
  | 'not_http'
  | 'switch_protocols'
  | 'bare_101'
  | 'two_answers'

/** A request, as it came in. */
export interface Delivery {
  readonly method: string
  /** Path and query. */
  readonly path: string
  readonly headers: IncomingHttpHeaders
  readonly body: Buffer
  /** The host name that TLS was asked for; none for an address. */
  readonly serverName: string | undefined
  /** When the whole body had come in, in ms since 1970. */
  readonly receivedAt: number
}

export interface ReceiverOptions {
  readonly authority: TestAuthority
  /**
   * Default: 200. A function decides for each delivery, where the behaviour is not one of the
   * connection.
   */
  readonly behaviour?: Behaviour | ((delivery: Delivery) => Behaviour | Promise<Behaviour>)
  /** Where to listen. Default 127.0.0.1, on a port that is free. */
  readonly host?: string
  readonly port?: number
  /** What the certificate is for. Default: `receiver.test`, `localhost` and the host. */
  readonly certificateNames?: readonly string[]
  /** Between two bytes or interim answers of a slow behaviour, in ms. Default 1,000. */
  readonly dripMs?: number
  /**
   * How long an idle connection is kept, in ms; 0 for as long as the client likes. Default 5,000.
   */
  readonly keepAliveMs?: number
}

export interface Receiver extends AsyncDisposable {
  readonly port: number
  /** An https URL at the address that the receiver listens on. */
  readonly url: string
  /** An https URL with this host name, and the receiver's port. */
  urlFor(hostname: string): string
  /** Every request so far, whatever was answered. */
  readonly deliveries: readonly Delivery[]
  /** Connections accepted so far, and open now. */
  readonly connections: number
  readonly openConnections: number
  /** Bytes received so far, TLS included, in all connections. */
  readonly bytesReceived: number
  /** Changes the behaviour from now on, for open connections too. */
  behave(behaviour: Behaviour | ((delivery: Delivery) => Behaviour | Promise<Behaviour>)): void
  /** Resolves when there have been this many deliveries. */
  received(count: number): Promise<void>
  /** Resolves when no connection is open. */
  disconnected(): Promise<void>
  /** Closes all open connections, in good order. */
  hangUp(): void
  close(): Promise<void>
}

export async function startReceiver({
  authority,
  behaviour: firstBehaviour = { status: 200 },
  host = '127.0.0.1',
  port = 0,
  certificateNames = ['receiver.test', 'localhost', host],
  dripMs = 1_000,
  keepAliveMs = 5_000,
}: ReceiverOptions): Promise<Receiver> {
  let behaviour = firstBehaviour
  let connections = 0
  let bytesOfClosed = 0
  const open = new Set<Socket>()
  const secured = new Set<TLSSocket>()
  const deliveries: Delivery[] = []
  const changes = new EventTarget()
  const changed = () => changes.dispatchEvent(new Event('change'))

  const https = createHttpsServer(
    {
      ...(await authority.issue(certificateNames)),
      keepAliveTimeout: keepAliveMs,
      requestTimeout: 0,
    },
    async (request, response) => {
      const delivery = await readDelivery(request).catch(() => undefined)
      if (delivery === undefined) return
      deliveries.push(delivery)
      changed()
      const wanted = typeof behaviour === 'function' ? await behaviour(delivery) : behaviour
      if (typeof wanted === 'object') {
        response.writeHead(wanted.status, wanted.headers).end(wanted.body)
        return
      }
      // A TLS socket cannot be reset, but the connection under it can: the one from the same port.
      const below = [...open].find(({ remotePort }) => remotePort === request.socket.remotePort)
      misbehaviours[wanted]?.({
        socket: request.socket,
        dripMs,
        reset: () => below?.resetAndDestroy(),
      })
    },
  )
  https.on('secureConnection', (socket: TLSSocket) => {
    secured.add(socket)
    socket.on('error', () => {})
    socket.once('close', () => secured.delete(socket))
  })

  // TLS is given connections that were accepted here, where every byte can be counted and TLS be
  // withheld.
  const tcp = createTcpServer((socket) => {
    connections += 1
    open.add(socket)
    socket.on('error', () => {})
    socket.once('close', () => {
      open.delete(socket)
      bytesOfClosed += socket.bytesRead
      changed()
    })
    changed()
    if (behaviour === 'tls_never_finishes') socket.resume()
    else if (behaviour === 'reset_on_connect') socket.once('data', () => socket.resetAndDestroy())
    else if (behaviour === 'plain_text') socket.resume().end(EMPTY_OK)
    else https.emit('connection', socket)
  })
  await new Promise<void>((resolve, reject) => {
    tcp.once('error', reject)
    tcp.listen(port, host, resolve)
  })
  const listening = tcp.address() as AddressInfo

  async function until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      await new Promise((resolve) => changes.addEventListener('change', resolve, { once: true }))
    }
  }

  const urlFor = (hostname: string) => `https://${hostname}:${listening.port}/hook`
  async function close(): Promise<void> {
    for (const socket of open) socket.destroy()
    if (tcp.listening) await new Promise((resolve) => tcp.close(resolve))
  }

  return {
    port: listening.port,
    url: urlFor(isIP(host) === 6 ? `[${host}]` : host),
    urlFor,
    deliveries,
    get connections() {
      return connections
    },
    get openConnections() {
      return open.size
    },
    get bytesReceived() {
      return [...open].reduce((sum, socket) => sum + socket.bytesRead, bytesOfClosed)
    },
    behave(next) {
      behaviour = next
    },
    received: (count) => until(() => deliveries.length >= count),
    disconnected: () => until(() => open.size === 0),
    hangUp() {
      for (const socket of secured) socket.end()
    },
    close,
    [Symbol.asyncDispose]: close,
  }
}

async function readDelivery(request: IncomingMessage): Promise<Delivery> {
  const chunks: Buffer[] = []
  for await (const chunk of request) chunks.push(chunk as Buffer)
  const { servername } = request.socket as TLSSocket
  return {
    method: request.method ?? '',
    path: request.url ?? '',
    headers: request.headers,
    body: Buffer.concat(chunks),
    serverName: typeof servername === 'string' ? servername : undefined,
    receivedAt: Date.now(),
  }
}

/** Where a misbehaviour is written: below HTTP, which would not let it through. */
interface Wire {
  /** Inside TLS. */
  readonly socket: Socket
  readonly dripMs: number
  reset(): void
}

/**
 * The behaviours that begin once a request was taken. Those that are not here are over by then, or
 * do nothing.
 */
const misbehaviours: Partial<Record<Extract<Behaviour, string>, (wire: Wire) => void>> = {
  reset: ({ reset }) => reset(),
  close: ({ socket }) => socket.end(),
  reset_in_headers: ({ socket, reset }) => socket.write(`${OK}Content-Le`, reset),
  slow_headers({ socket, dripMs }) {
    socket.write(`${OK}X-Slow: `)
    drip(socket, 'x', dripMs)
  },
  slow_body({ socket, dripMs }) {
    socket.write(`${OK}Content-Length: 1000000\r\n\r\n`)
    drip(socket, 'x', dripMs)
  },
  endless_headers({ socket }) {
    socket.write(OK)
    flood(socket, `X-More: ${'x'.repeat(1_000)}\r\n`)
  },
  endless_body({ socket }) {
    socket.write(`${OK}Content-Length: 1000000000000\r\n\r\n`)
    flood(socket, 'x'.repeat(10_000))
  },
  endless_chunk_extension({ socket }) {
    socket.write(`${OK}Transfer-Encoding: chunked\r\n\r\n1;x=`)
    flood(socket, 'x'.repeat(10_000))
  },
  endless_blank_lines: ({ socket }) => flood(socket, '\r\n'.repeat(5_000)),
  interim_storm: ({ socket }) =>
    flood(socket, 'HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n'.repeat(100)),
  interim_drip: ({ socket, dripMs }) => drip(socket, 'HTTP/1.1 102 Processing\r\n\r\n', dripMs),
  interim_then_ok({ socket }) {
    socket.write(CONTINUE)
    socket.write('HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n')
    socket.write('HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\nHTTP/1.1 199 Whatever\r\n\r\n')
    socket.write(EMPTY_OK)
  },
  continue_then_ok: ({ socket }) => socket.write(CONTINUE + EMPTY_OK),
  many_interim_then_ok: ({ socket }) => socket.write(CONTINUE.repeat(100) + EMPTY_OK),
  too_many_interim: ({ socket }) => socket.write(CONTINUE.repeat(101) + EMPTY_OK),
  not_http: ({ socket }) => socket.write('220 mail.test ESMTP\r\n'),
  switch_protocols: ({ socket }) =>
    socket.write('HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n'),
  bare_101: ({ socket }) => socket.write('HTTP/1.1 101 Switching\r\n\r\n'),
  two_answers: ({ socket }) => socket.write(EMPTY_OK.repeat(2)),
}

function drip(socket: Socket, text: string, everyMs: number): void {
  const timer = setInterval(() => socket.write(text), everyMs)
  socket.once('close', () => clearInterval(timer))
}

function flood(socket: Socket, text: string): void {
  const pour = () => {
    while (!socket.destroyed && socket.write(text));
  }
  socket.on('drain', pour)
  pour()
}

/** What one look-up finds: addresses, or the error that it ends in. */
export type LookUp = readonly string[] | Error

export interface ScriptedResolver {
  (hostname: string, signal: AbortSignal): Promise<readonly string[]>
  /** The names looked up so far. */
  readonly lookUps: readonly string[]
}

/**
 * A resolver whose n-th look-up of a name finds the n-th of its answers, and from then on the last
 * of them; `never` leaves a look-up without an end. A name that is not listed does not exist.
 */
export function scriptedResolver(
  answers: Readonly<Record<string, readonly (LookUp | 'never')[]>>,
): ScriptedResolver {
  const lookUps: string[] = []
  const resolve = async (hostname: string): Promise<readonly string[]> => {
    const script = answers[hostname] ?? [notFound(hostname)]
    const found = script[lookUps.filter((name) => name === hostname).length] ?? script.at(-1) ?? []
    lookUps.push(hostname)
    if (found === 'never') return await new Promise(() => {})
    if (found instanceof Error) throw found
    return found
  }
  return Object.assign(resolve, { lookUps })
}

function notFound(hostname: string): Error {
  return Object.assign(new Error(`queryA ENOTFOUND ${hostname}`), { code: 'ENOTFOUND' })
}
