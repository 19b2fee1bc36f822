/** HTTP as bytes: requests that no client sends, and answers as they come over the wire. */
import { connect } from 'node:net'

/**
 * Far above what an answer takes, on a machine that is busy: a server that waits 10 s for the rest
 * of a head included.
 */
const ANSWER_DEADLINE_MS = 60_000

export interface RawAnswer {
  readonly status: number
  /** Names in lower case. */
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

/**
 * Sends bytes, given as text with a character for each byte, and returns the answers, interim ones
 * left out: as many as are asked for, or fewer if the server closes the connection before.
 * `headless` is for answers that have a head only, as those to HEAD.
 */
export async function sendRaw(
  port: number,
  bytes: string,
  {
    answers: wanted = 1,
    headless = false,
  }: { answers?: number; headless?: boolean | undefined } = {},
): Promise<RawAnswer[]> {
  const socket = connect(port, '127.0.0.1')
  const { promise, resolve, reject } = Promise.withResolvers<RawAnswer[]>()
  let received = ''
  const parsed = () => parseAnswers(received, headless)
  socket.setEncoding('latin1')
  socket.setTimeout(ANSWER_DEADLINE_MS, () =>
    reject(new Error(`no answer, but ${JSON.stringify(received)}`)),
  )
  socket.on('data', (text: string) => {
    received += text
    if (parsed().length >= wanted) resolve(parsed())
  })
  // What had been sent before a reset counts.
  socket.on('error', () => socket.destroy())
  socket.on('close', () => resolve(parsed()))
  socket.write(bytes, 'latin1')
  try {
    return await promise
  } finally {
    socket.destroy()
  }
}

/** The whole answers at the beginning of the text. */
function parseAnswers(text: string, headless: boolean): RawAnswer[] {
  const answers: RawAnswer[] = []
  for (let rest = text; ; ) {
    const end = rest.indexOf('\r\n\r\n')
    if (end === -1) return answers
    const [first = '', ...lines] = rest.slice(0, end).split('\r\n')
    const fields = lines.map((line) => line.split(/: *(.*)/s, 2) as [string, string])
    const headers = Object.fromEntries(fields.map(([name, value]) => [name.toLowerCase(), value]))
    const status = Number(/^HTTP\/1\.[01] (\d{3})/.exec(first)?.[1])
    // What ends with the connection is taken to be whole.
    const length =
      headless || status < 200 ? 0 : Number(headers['content-length'] ?? rest.length - end - 4)
    const body = rest.slice(end + 4, end + 4 + length)
    if (body.length < length) return answers
    rest = rest.slice(end + 4 + length)
    if (status >= 200) answers.push({ status, headers, body })
  }
}
