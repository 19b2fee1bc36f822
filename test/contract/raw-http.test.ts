/** What every door answers to bytes that no client sends. */
import { describe, it } from 'vitest'
import { haproxyVersion } from '../../lab/servers.ts'
import { expectAnswers, RAW_CASES } from '../support/raw-requests.ts'
import { sharedTarget } from '../support/target.ts'

const { baseUrl } = await sharedTarget()
const port = Number(new URL(baseUrl).port)
const ownWords = process.env.TABULUM_TEST_TARGET === 'cluster' && (await isOld(3, 2))

describe('raw requests', () => {
  it.concurrent.each(RAW_CASES)('$what', (rawCase) => expectAnswers(port, rawCase, ownWords))
})

async function isOld(since: number, minorSince: number): Promise<boolean> {
  const [major, minor] = await haproxyVersion()
  return major < since || (major === since && minor < minorSince)
}
