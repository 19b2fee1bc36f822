import { describe, expect, it } from 'vitest'
import { Client, operatorCreated } from '../../lab/client.ts'
import { ownNode, sharedTarget } from '../support/target.ts'
import { expectRefusal, inParallel, lastSeq, ofType } from './support.ts'

const target = await sharedTarget()
const client = new Client(target.baseUrl)
const TERMS_URL = 'https://terms.example/agents?v=1&lang=en'
const withTerms = new Client((await ownNode({ TERMS_URL })).baseUrl)

const register = (json: unknown) => client.request('POST', '/v1/operators', { json })

describe('POST /v1/operators', () => {
  it('without auth answers 201 {"operator_id": "<uuid>", "api_key": "sk_live_…"}', async () => {
    const answer = await register({ contact_hash: 'a hash', accept_terms: true })
    answer.as(201, operatorCreated)
  })

  it('gives every operator an id and a key of its own', async () => {
    const answers = await inParallel(20, () =>
      register({ contact_hash: 'the same', accept_terms: true }),
    )
    const created = answers.map((answer) => answer.as(201, operatorCreated))
    expect(new Set(created.map(({ operator_id }) => operator_id)).size).toBe(20)
    expect(new Set(created.map(({ api_key }) => api_key)).size).toBe(20)
  })

  it.each([
    ['missing', { accept_terms: true }],
    ['empty', { contact_hash: '', accept_terms: true }],
    ['null', { contact_hash: null, accept_terms: true }],
    ['a number', { contact_hash: 7, accept_terms: true }],
    ['a list', { contact_hash: ['x'], accept_terms: true }],
    ['an object', { contact_hash: { x: 1 }, accept_terms: true }],
  ])('is 400 if contact_hash is %s', async (_, json) => {
    expectRefusal(await register(json), 400)
  })

  it.each([
    ['missing', { contact_hash: 'x' }],
    ['false', { contact_hash: 'x', accept_terms: false }],
    ['"true"', { contact_hash: 'x', accept_terms: 'true' }],
    ['1', { contact_hash: 'x', accept_terms: 1 }],
    ['null', { contact_hash: 'x', accept_terms: null }],
    ['[true]', { contact_hash: 'x', accept_terms: [true] }],
  ])('is 400 if accept_terms is not true but %s', async (_, json) => {
    expectRefusal(await register(json), 400)
  })

  it.each([
    ['U+0000', 'a\u0000b'],
    ['one space', ' '],
    ['astral characters', '😀\u{10ffff}'],
    ['a byte order mark', '\ufeffx'],
  ])('takes any non-empty contact_hash, and logs it as it came: %s', async (_, contactHash) => {
    const since = await lastSeq(target)
    const { operator_id } = (await register({ contact_hash: contactHash, accept_terms: true })).as(
      201,
      operatorCreated,
    )
    const [event] = ofType(await target.events(since), 'operator_created')
    expect(event?.data).toEqual({ operator_id, contact_hash: contactHash, accepted_terms: true })
  })
})

describe('the terms', () => {
  it.each([{ contact_hash: 'x' }, { contact_hash: 'x', accept_terms: false }])(
    'are named where they are not accepted: %j',
    async (json) => {
      const answer = await withTerms.request('POST', '/v1/operators', { json })
      expectRefusal(answer, 400)
      expect(answer.body.toString()).toContain(TERMS_URL)
      const without = await client.request('POST', '/v1/operators', { json })
      expectRefusal(without, 400)
      expect(without.body.toString()).toContain('has published no terms')
    },
  )

  it('are named in the documentation, or that there are none', async () => {
    const info = async (of: Client) =>
      JSON.parse((await of.request('GET', '/v1/openapi.json')).body.toString()).info
    expect(await info(withTerms)).toMatchObject({ termsOfService: TERMS_URL })
    expect(await info(client)).not.toHaveProperty('termsOfService')
    const page = (await withTerms.request('GET', '/docs')).body.toString()
    expect(page).toContain(`<a href="${TERMS_URL.replace('&', '&amp;')}">Terms</a>`)
    expect((await client.request('GET', '/docs')).body.toString()).toContain(
      'has published no terms',
    )
  })
})
