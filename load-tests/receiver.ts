/**
 * Receives what webhooks.ts lets the kernel push, and tells what came: POST /<run>/<agent>, GET
 * /<run>. Needs a certificate that the workers believe (WEBHOOK_CA_FILE) and an address that they
 * may reach (WEBHOOK_ALLOW_CIDRS, where it is not public):
 *   TLS_CERT=receiver.pem TLS_KEY=receiver.key PORT=8443 node load-tests/receiver.ts
 */
import { readFileSync } from 'node:fs'
import { createServer } from 'node:https'
import { text } from 'node:stream/consumers'

const {
  TLS_CERT = 'receiver.pem',
  TLS_KEY = 'receiver.key',
  PORT = '8443',
  HOST = '127.0.0.1',
} = process.env

interface Received {
  ids: Set<string>
  numbers: Set<number>
  newest: number
  repeated: number
}
const runs = new Map<string, Map<string, Received>>()

const server = createServer(
  { cert: readFileSync(TLS_CERT), key: readFileSync(TLS_KEY) },
  async (request, response) => {
    const [, run = '', agent = ''] = (request.url ?? '').split('/')
    if (request.method === 'POST') {
      const message = JSON.parse(await text(request)) as { message_id: string; content: string }
      const agents = runs.get(run) ?? runs.set(run, new Map()).get(run)
      const received = agents?.get(agent) ?? {
        ids: new Set(),
        numbers: new Set(),
        newest: 0,
        repeated: 0,
      }
      agents?.set(agent, received)
      const number = Number(message.content.split(' ')[1])
      if (received.ids.has(message.message_id)) received.repeated++
      received.ids.add(message.message_id)
      received.numbers.add(number)
      received.newest = Math.max(received.newest, number)
      response.writeHead(204).end()
      return
    }
    const all = [...(runs.get(run)?.values() ?? [])]
    const sum = (value: (received: Received) => number) =>
      all.reduce((total, one) => total + value(one), 0)
    const report = {
      received: sum(({ numbers }) => numbers.size),
      repeated: sum(({ repeated }) => repeated),
      missing: sum(({ newest, numbers }) => newest - numbers.size),
    }
    response.writeHead(200, { 'Content-Type': 'application/json' }).end(JSON.stringify(report))
  },
)
server.listen(Number(PORT), HOST, () => console.log(`receives on https://${HOST}:${PORT}`))
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(0))
