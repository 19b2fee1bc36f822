/** Large bodies, many at once. */
import { Agent, type Answer, Client } from '../client.ts'

/**
 * A value that is one byte too long, six bytes of JSON for each of its own: what is refused leaves
 * nothing behind.
 */
const BODY = Buffer.from(JSON.stringify({ value: '\0'.repeat(1_048_576 + 1) }))
const TOO_LARGE = 413
const OVERLOADED = 503

/**
 * Sends so many bodies of 6 MiB at once, each over a connection of its own. Resolves to how many
 * were told to come again. Throws where one has another answer than that, or that its value is too
 * long. None at all may come where no node has time to answer the load balancer.
 */
export async function sendLargeBodies(baseUrl: string, bodies: number): Promise<number> {
  const { address, token } = await new Client(baseUrl).registerAgent()
  const answers = await Promise.all(
    Array.from({ length: bodies }, (_, index) => {
      const headers = { 'Content-Type': 'application/json' }
      const agent = new Agent(new Client(baseUrl), address, token)
      const options = { headers, body: BODY, chunked: index % 2 === 0 }
      return agent.request('PUT', '/v1/state/burst', options).catch(() => undefined)
    }),
  )
  const wrong = answers.find((answer) => answer !== undefined && !isExpected(answer))
  if (wrong) throw new Error(`one of many large bodies at once: ${wrong}`)
  return answers.filter((answer) => answer?.status === OVERLOADED).length
}

function isExpected({ status, headers }: Answer): boolean {
  return (
    status === TOO_LARGE ||
    (status === OVERLOADED && /^[1-9]\d*$/.test(String(headers['retry-after'])))
  )
}
