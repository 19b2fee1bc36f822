import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import {
  agentCreated,
  Client,
  challengeIssued,
  pipelineData,
  solvePipeline,
} from '../../lab/client.ts'
import { ownNode, sharedTarget } from '../support/target.ts'
import { countStatuses, expectRefusal, inParallel, lastSeq, ofType } from './support.ts'

const target = await sharedTarget()
const shortLived = await ownNode({ VERIFICATION_TTL: '1s' })
const stubbed = await ownNode({ VERIFICATION_GATE: 'stub' })
const client = new Client(target.baseUrl)
const operator = await client.registerOperator()

const FIVE_MINUTES_MS = 300_000

describe('GET /v1/agents/verification-challenge', () => {
  it('answers 200 {"challenge_id", "challenge_type", "challenge_data", "expires_at"}', async () => {
    const answer = await operator.request('GET', '/v1/agents/verification-challenge')
    answer.as(200, challengeIssued)
  })

  it('gives a new challenge each time', async () => {
    const challenges = await inParallel(20, () => operator.challenge())
    expect(new Set(challenges.map(({ challenge_id }) => challenge_id)).size).toBe(20)
    expect(new Set(challenges.map(({ challenge_data }) => challenge_data.seed)).size).toBe(20)
  })

  it('a challenge lives 5 minutes', async () => {
    const before = Date.now()
    const { expires_at } = await operator.challenge()
    const issuedAt = Date.parse(expires_at) - FIVE_MINUTES_MS
    expect(issuedAt).toBeGreaterThan(before - 2_000)
    expect(issuedAt).toBeLessThan(Date.now() + 2_000)
  })
})

describe('the pipeline challenge', () => {
  it('is the default, with a seed of 32 hex and 8 operations', async () => {
    const { challenge_type, challenge_data } = await operator.challenge()
    expect(challenge_type).toBe('pipeline')
    pipelineData.parse(challenge_data)
  })

  it('applies the operations in turn to the seed, and always has an answer', async () => {
    const statuses = await inParallel(300, async () => {
      const { challenge_id, challenge_data } = await operator.challenge()
      const answer = await operator.answerChallenge(challenge_id, solvePipeline(challenge_data))
      return answer.status === 201 ? 201 : `${answer} to ${JSON.stringify(challenge_data)}`
    })
    expect(statuses.filter((status) => status !== 201)).toEqual([])
  })

  it('answered wrongly is 403', async () => {
    const { challenge_id, challenge_data } = await operator.challenge()
    expectRefusal(
      await operator.answerChallenge(challenge_id, `${solvePipeline(challenge_data)} `),
      403,
    )
  })

  it('takes the last result, not an earlier one', async () => {
    const { challenge_id, challenge_data } = await operator.challenge()
    expectRefusal(await operator.answerChallenge(challenge_id, challenge_data.seed), 403)
  })
})

describe('a challenge is good for one attempt', () => {
  it('right: the second is 403', async () => {
    const { challenge_id, challenge_data } = await operator.challenge()
    const solution = solvePipeline(challenge_data)
    ;(await operator.answerChallenge(challenge_id, solution)).as(201, agentCreated)
    expectRefusal(await operator.answerChallenge(challenge_id, solution), 403)
  })

  it('or wrong: the right answer after it is 403', async () => {
    const { challenge_id, challenge_data } = await operator.challenge()
    expectRefusal(await operator.answerChallenge(challenge_id, 'wrong'), 403)
    expectRefusal(await operator.answerChallenge(challenge_id, solvePipeline(challenge_data)), 403)
  })

  it('on whichever node it lands: of 20 right answers at once, one registers an agent', async () => {
    const { challenge_id, challenge_data } = await operator.challenge()
    const solution = solvePipeline(challenge_data)
    const since = await lastSeq(target)
    const answers = await inParallel(20, () => operator.answerChallenge(challenge_id, solution))
    expect(countStatuses(answers)).toEqual({ 201: 1, 403: 19 })
    expect(ofType(await target.events(since), 'agent_registered')).toHaveLength(1)
  })

  it('of a wrong answer and right ones at once, at most one registers an agent', async () => {
    const { challenge_id, challenge_data } = await operator.challenge()
    const solution = solvePipeline(challenge_data)
    const answers = await inParallel(10, (index) =>
      operator.answerChallenge(challenge_id, index === 0 ? 'wrong' : solution),
    )
    expect(answers.filter(({ status }) => status === 201).length).toBeLessThanOrEqual(1)
    expect(answers.every(({ status }) => status === 201 || status === 403)).toBe(true)
  })
})

describe('403 verification_failed', () => {
  it('when the challenge is unknown', async () => {
    expectRefusal(await operator.answerChallenge(crypto.randomUUID(), 'x'), 403)
  })

  it('when the challenge is no id at all', async () => {
    for (const id of ['nonsense', 'a\u0000b', '😀', 'x'.repeat(10_000), '%']) {
      expectRefusal(await operator.answerChallenge(id, 'x'), 403)
    }
  })

  it("when the challenge is another operator's", async () => {
    const other = await client.registerOperator()
    const { challenge_id, challenge_data } = await other.challenge()
    expectRefusal(await operator.answerChallenge(challenge_id, solvePipeline(challenge_data)), 403)
  })

  it('when the challenge has expired', async () => {
    const hurried = await new Client(shortLived.baseUrl).registerOperator()
    // Again where the machine was held up for so long that the answer may have come too late.
    for (;;) {
      const inTime = await hurried.challenge()
      const answer = await hurried.answerChallenge(
        inTime.challenge_id,
        solvePipeline(inTime.challenge_data),
      )
      if (answer.status === 403 && Date.now() > Date.parse(inTime.expires_at)) continue
      answer.as(201, agentCreated)
      break
    }
    const late = await hurried.challenge()
    await sleep(Date.parse(late.expires_at) - Date.now() + 100)
    expectRefusal(
      await hurried.answerChallenge(late.challenge_id, solvePipeline(late.challenge_data)),
      403,
    )
  })
})

describe('the stub challenge', () => {
  it('passes any response, of any type, once', async () => {
    const careless = await new Client(stubbed.baseUrl).registerOperator()
    for (const response of [
      'anything',
      '',
      '\u0000',
      undefined,
      null,
      7,
      false,
      {},
      { a: [1] },
      ['x'],
    ]) {
      const { challenge_id, challenge_type } = await careless.challenge()
      expect(challenge_type).toBe('stub')
      ;(await careless.answerChallenge(challenge_id, response)).as(201, agentCreated)
      expectRefusal(await careless.answerChallenge(challenge_id, response), 403)
    }
  })
})
