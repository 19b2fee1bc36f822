import { describe, expect, it } from 'vitest'
import { agentCreated, Client, solvePipeline } from '../../lab/client.ts'
import { sharedTarget } from '../support/target.ts'
import { expectRefusal, inParallel, lastSeq, ofType } from './support.ts'

const target = await sharedTarget()
const client = new Client(target.baseUrl)
const operator = await client.registerOperator()

/** Answers a challenge rightly, with these further fields in the body. */
async function register(more: Record<string, unknown> = {}) {
  const { challenge_id, challenge_data } = await operator.challenge()
  return operator.answerChallenge(challenge_id, solvePipeline(challenge_data), more)
}

describe('POST /v1/agents', () => {
  it('answers 201 {"agent_address": "tab_" + 20 of [a-z0-9], "agent_token": "at_live_…"}', async () => {
    ;(await register()).as(201, agentCreated)
  })

  it('gives every agent an address and a token of its own', async () => {
    const agents = (await inParallel(20, () => register())).map((answer) =>
      answer.as(201, agentCreated),
    )
    expect(new Set(agents.map(({ agent_address }) => agent_address)).size).toBe(20)
    expect(new Set(agents.map(({ agent_token }) => agent_token)).size).toBe(20)
  })

  it('a registered agent can act, and be written to, at once', async () => {
    for (let round = 0; round < 10; round++) {
      const [one, two] = [await operator.registerAgent(), await operator.registerAgent()]
      await one.send(two.address, 'welcome')
      expect((await two.receive()).messages).toHaveLength(1)
    }
  })

  it.each([
    ['verification_response', {}],
    ['verification_response that is an object', { verification_response: 'x' }],
    ['verification_response that is not null', { verification_response: null }],
    ['challenge_id', { verification_response: { response: 'x' } }],
    [
      'challenge_id that is a string',
      { verification_response: { challenge_id: 7, response: 'x' } },
    ],
    [
      'challenge_id that is not null',
      { verification_response: { challenge_id: null, response: 'x' } },
    ],
  ])('is 400 without a %s', async (_, json) => {
    expectRefusal(await operator.request('POST', '/v1/agents', { json }), 400)
  })

  it('is 403 if the response is no string, or missing; and the challenge is used up', async () => {
    for (const response of [undefined, null, 7, true, {}, ['x'], { toString: 'x' }]) {
      const { challenge_id, challenge_data } = await operator.challenge()
      expectRefusal(await operator.answerChallenge(challenge_id, response), 403)
      expectRefusal(
        await operator.answerChallenge(challenge_id, solvePipeline(challenge_data)),
        403,
      )
    }
  })
})

describe('webhook_url', () => {
  it.each([{}, { webhook_url: '' }, { webhook_url: null }])('is optional: %j', async (more) => {
    const since = await lastSeq(target)
    expect((await register(more)).as(201, agentCreated).webhook_secret).toBeUndefined()
    expect(ofType(await target.events(since), 'agent_registered')[0]?.data).toMatchObject({
      has_webhook: false,
    })
  })

  it.each([
    'https://1.1.1.1/hook',
    'https://8.8.8.8:8443/a/b?c=d',
    'https://[2606:4700:4700::1111]/hook',
    'HTTPS://1.1.1.1',
    'https://user:pa%20ss@1.1.1.1/',
    'https://[64:ff9b::1.1.1.1]/hook',
  ])('is taken when it is https and its host is public: %s', async (url) => {
    const since = await lastSeq(target)
    ;(await register({ webhook_url: url })).as(201, agentCreated)
    expect(ofType(await target.events(since), 'agent_registered')[0]?.data).toMatchObject({
      has_webhook: true,
    })
  })

  it.each([
    'http://1.1.1.1/hook',
    'http://example.com/',
    'ftp://1.1.1.1/',
    'wss://1.1.1.1/',
    'file:///etc/passwd',
    'javascript:alert(1)',
    '//1.1.1.1/',
    '1.1.1.1',
    'https://',
    'https:///path',
    'https://[::1/',
    'https://1.1.1.1:99999/',
    'not a url',
    ' ',
  ])('is 400 if it is not https: %s', async (url) => {
    expectRefusal(await register({ webhook_url: url }), 400)
  })

  it.each([
    'https://user:%zz@1.1.1.1/',
    'https://user:%ff@1.1.1.1/',
    'https://user%0a:password@1.1.1.1/',
    'https://us%3Aer:password@1.1.1.1/',
    'http://user:password@1.1.1.1/',
    'https://user:password@127.0.0.1/',
  ])('is 400 if its user or password cannot be sent, or the rest is not right: %s', async (url) => {
    const answer = await register({ webhook_url: url })
    expectRefusal(answer, 400)
    expect(answer.body.toString()).not.toMatch(/user[:%]|password@/)
  })

  it.each([7, true, {}, ['https://1.1.1.1/']])('is 400 if it is not a string: %j', async (url) => {
    expectRefusal(await register({ webhook_url: url }), 400)
  })

  it.each([
    ['loopback', '127.0.0.1'],
    ['loopback', '127.255.255.254'],
    ['loopback, short', '127.1'],
    ['loopback, a number', '2130706433'],
    ['loopback, hexadecimal', '0x7f.1'],
    ['loopback, octal', '0177.0.0.1'],
    ['loopback', '[::1]'],
    ['loopback, IPv4-mapped', '[::ffff:127.0.0.1]'],
    ['loopback, IPv4-mapped in hexadecimal', '[::ffff:7f00:1]'],
    ['loopback, IPv4-compatible', '[::127.0.0.1]'],
    ['loopback, NAT64', '[64:ff9b::7f00:1]'],
    ['loopback, 6to4', '[2002:7f00:1::]'],
    ['private', '10.0.0.1'],
    ['private', '172.16.0.1'],
    ['private', '172.31.255.255'],
    ['private', '192.168.1.1'],
    ['private, IPv4-mapped', '[::ffff:10.0.0.1]'],
    ['private', '[fc00::1]'],
    ['private', '[fd12:3456:789a::1]'],
    ['link-local', '169.254.1.1'],
    ['link-local', '[fe80::1]'],
    ['link-local', '[febf::1]'],
    ['metadata', '169.254.169.254'],
    ['metadata, IPv4-mapped', '[::ffff:169.254.169.254]'],
    ['metadata, NAT64', '[64:ff9b::a9fe:a9fe]'],
    ['metadata', '[fd00:ec2::254]'],
    ['carrier-grade NAT', '100.64.0.1'],
    ['carrier-grade NAT', '100.127.255.255'],
    ['multicast', '224.0.0.1'],
    ['multicast', '239.255.255.255'],
    ['multicast', '[ff02::1]'],
    ['reserved', '240.0.0.1'],
    ['reserved', '255.255.255.255'],
    ['reserved', '192.0.2.1'],
    ['reserved', '198.18.0.1'],
    ['reserved', '198.51.100.1'],
    ['reserved', '203.0.113.1'],
    ['reserved', '[2001:db8::1]'],
    ['unspecified', '0.0.0.0'],
    ['unspecified', '0'],
    ['unspecified', '[::]'],
    ['unspecified, IPv4-mapped', '[::ffff:0.0.0.0]'],
  ])('is 400 if its host is not public unicast, %s: %s', async (_, host) => {
    expectRefusal(await register({ webhook_url: `https://${host}/` }), 400)
  })

  it.each(['localhost', 'LOCALHOST', 'localhost.'])(
    'is 400 if its host resolves to an address that is not public unicast: %s',
    async (host) => {
      expectRefusal(await register({ webhook_url: `https://${host}/` }), 400)
    },
  )

  it('is 400 if its host does not resolve', async () => {
    expectRefusal(await register({ webhook_url: 'https://no-such-host.invalid/' }), 400)
  })
})

describe('GET /v1/agents/me', () => {
  it('answers 200 {"address": "tab_…", "registered_at": "…"}', async () => {
    const before = Date.now()
    const agent = await client.registerAgent()
    const { address, registered_at } = await agent.me()
    expect(address).toBe(agent.address)
    expect(Date.parse(registered_at)).toBeGreaterThan(before - 2_000)
    expect(Date.parse(registered_at)).toBeLessThan(Date.now() + 2_000)
  })

  it('says the same each time, and the same as the registry', async () => {
    const agent = await client.registerAgent()
    const first = await agent.me()
    expect(await agent.me()).toEqual(first)
    const { agents } = await agent.registry('?limit=1000')
    expect(agents).toContainEqual(first)
  })
})
