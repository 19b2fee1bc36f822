/**
 * What an api node answers itself, and every internal port: `test/contract/raw-http.test.ts` asks
 * through the load balancer.
 */
import { afterAll, describe, expect, it } from 'vitest'
import { startSharedCluster } from '../../lab/cluster.ts'
import { sendRaw } from '../support/raw-http.ts'
import { expectAnswers, MENDED, RAW_CASES } from '../support/raw-requests.ts'

const cluster = await startSharedCluster({
  nodes: 1,
  workers: 1,
  settings: { RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000000' },
})
afterAll(() => cluster[Symbol.asyncDispose]())
const [node] = cluster.nodes
const portOf = (url = '') => Number(new URL(url).port)

describe('an api node', () => {
  it.concurrent.each([...RAW_CASES, ...MENDED])('$what', (rawCase) =>
    expectAnswers(portOf(node?.url), rawCase),
  )
})

describe.each([node, cluster.workers[0]])('the internal port of $name', (kernel) => {
  const port = portOf(kernel?.internalUrl)

  it.each(['/livez', '/readyz'])('serves %s in HTTP/1.0 without a Host', async (path) => {
    const [answer] = await sendRaw(port, `GET ${path} HTTP/1.0\r\n\r\n`)
    expect(answer?.status).toBe(200)
  })

  it.concurrent.each(
    [...RAW_CASES, ...MENDED].filter(
      ({ expected: [first] }) => first !== undefined && 'message' in first,
    ),
  )('refuses $what', (rawCase) => expectAnswers(port, rawCase))
})
