import { randomUUID } from 'node:crypto'
import { expect, it } from 'vitest'
import { Client, keyPath, percentEncode } from '../../lab/client.ts'
import { startKernel } from '../../lab/kernel.ts'

/** A word that occurs nowhere by chance. */
const secret = (what: string) => `secret-${what}-${randomUUID()}`

it('logs hold no token, no content, no key and no answer, whatever agents do; but a line for each request', async () => {
  await using kernel = await startKernel({
    LOG_LEVEL: 'trace',
    STATE_CAPACITY_BYTES: '2000',
    RATE_LIMIT_REGISTRY_READ_PER_MIN: '3',
  })
  const client = new Client(kernel.baseUrl)
  const secrets: string[] = []
  const hidden = (what: string) => {
    const word = secret(what)
    secrets.push(word)
    return word
  }
  let requests = 0
  const request = async (...args: Parameters<Client['request']>) => {
    requests++
    return client.request(...args)
  }

  const json = (body: unknown, token?: string) => ({ json: body, token })
  const operator = await request(
    'POST',
    '/v1/operators',
    json({ contact_hash: hidden('contact'), accept_terms: true }),
  )
  const { api_key: operatorToken } = operator.json as { api_key: string }
  await request(
    'POST',
    '/v1/operators',
    json({ contact_hash: hidden('contact'), accept_terms: hidden('terms') }),
  )

  const registration = new Client(kernel.baseUrl)
  const [one, two] = await registration.registerAgents(2)
  if (!one || !two) throw new Error('nobody registered')
  secrets.push(operatorToken, one.token, two.token)
  const challenge = await request('GET', '/v1/agents/verification-challenge', {
    token: operatorToken,
  })
  const { challenge_id } = challenge.json as { challenge_id: string }
  const verification = { verification_response: { challenge_id, response: hidden('response') } }
  await request('POST', '/v1/agents', json(verification, operatorToken))
  const webhook = {
    ...verification,
    webhook_url: `https://user:${hidden('password')}@10.0.0.1/${hidden('path')}`,
  }
  await request('POST', '/v1/agents', json(webhook, operatorToken))
  await request(
    'POST',
    '/v1/agents',
    json({ ...verification, webhook_url: `https://localhost/${hidden('path')}` }, operatorToken),
  )

  const { token } = one
  await request(
    'POST',
    '/v1/messages',
    json({ to: two.address, content: hidden('content') }, token),
  )
  await request('POST', '/v1/messages', {
    ...json({ to: two.address, content: hidden('content') }, token),
    headers: { 'Idempotency-Key': hidden('idempotency') },
  })
  await request(
    'POST',
    '/v1/messages',
    json({ to: hidden('recipient'), content: hidden('content') }, token),
  )
  await request(
    'POST',
    '/v1/messages',
    json({ to: two.address, content: { [hidden('field')]: hidden('value') } }, token),
  )
  await request(
    'POST',
    '/v1/messages',
    json({ to: two.address, content: hidden('long').repeat(2_000) }, token),
  )
  await request('GET', '/v1/messages', { token: two.token })

  const key = hidden('key')
  await request('PUT', keyPath(key), json({ value: hidden('value') }, token))
  await request('GET', keyPath(key), { token })
  await request('PUT', keyPath(hidden('key')), json({ value: hidden('full').repeat(100) }, token))
  await request('PUT', keyPath(hidden('key').repeat(30)), json({ value: '' }, token))
  await request(
    'PUT',
    keyPath(hidden('key')),
    json({ value: hidden('large').repeat(30_000) }, token),
  )
  await request(
    'GET',
    `/v1/state?prefix=${percentEncode(key.slice(0, 30))}&cursor=${hidden('cursor')}`,
    { token },
  )
  await request('GET', '/v1/state/_capacity', { token })
  await request('DELETE', keyPath(key), { token })
  await request('DELETE', keyPath(hidden('key')), { token })
  await request('GET', keyPath(hidden('key')), { token })

  // Secrets where they do not belong.
  const body = { headers: { 'Content-Type': 'application/json' }, token }
  await request('PUT', keyPath('malformed'), {
    ...body,
    body: `{"value": "${hidden('value')}", ${token}`,
  })
  await request('PUT', keyPath('not utf8'), {
    ...body,
    body: Buffer.concat([Buffer.from(hidden('value')), Buffer.of(0xff)]),
  })
  await request('PUT', keyPath('not json'), {
    token,
    body: hidden('value'),
    headers: { 'Content-Type': `text/${hidden('type')}` },
  })
  await request('GET', `/v1/${hidden('route')}?token=${token}`, { token })
  await request('GET', `/v1/state/${token}%zz`, { token })
  await request('GET', '/v1/agents/me', {
    headers: { Authorization: `Basic ${hidden('credentials')}` },
  })
  await request('GET', '/v1/agents/me', { token: `${token.slice(0, -1)}x` })
  await request('GET', '/v1/agents/me', { token: operatorToken })
  await request('GET', '/v1/agents/me', {
    token: `at_live_${'0'.repeat(64)}`,
    headers: { Cookie: hidden('cookie') },
  })
  await request('PATCH', keyPath(hidden('key')), { token })
  await request('OPTIONS', '/v1/messages', {
    token,
    headers: { 'X-Forwarded-For': hidden('forwarded') },
  })
  for (let index = 0; index < 5; index++) await request('GET', '/v1/agents/me', { token })

  expect(await kernel.stop()).toBe(0)
  const output = kernel.output()
  for (const word of [...secrets, ...secrets.map((text) => text.slice(-24))]) {
    for (const form of [
      word,
      percentEncode(word),
      Buffer.from(word).toString('base64').slice(0, 30),
      Buffer.from(word).toString('hex').slice(0, 60),
    ]) {
      expect(output.includes(form), `${word} is in the output`).toBe(false)
    }
  }

  const lines = output
    .split('\n')
    .flatMap((line) => (line.startsWith('{') ? [JSON.parse(line) as Record<string, unknown>] : []))
  const ours = lines.filter(({ msg }) => msg === 'request')
  // The two agents took an operator's registration and two requests each; the start's health checks
  // are lines as well.
  const others = ours.filter(({ route }) => route === '/v1/health').length
  expect(ours).toHaveLength(requests + 5 + others)
  for (const line of ours) {
    expect(line).toMatchObject({
      method: expect.any(String),
      route: expect.any(String),
      status: expect.any(Number),
      ms: expect.any(Number),
    })
  }
  expect(ours).toContainEqual(
    expect.objectContaining({
      method: 'PUT',
      route: '/v1/state/{key}',
      status: 507,
      agent: one.address,
    }),
  )
  expect(ours).toContainEqual(
    expect.objectContaining({
      method: 'GET',
      route: '/v1/messages',
      status: 200,
      agent: two.address,
    }),
  )
  expect(ours).toContainEqual(
    expect.objectContaining({ method: 'GET', route: 'unknown', status: 404 }),
  )
  expect(ours).toContainEqual(expect.objectContaining({ route: '/v1/agents/me', status: 401 }))
  expect(ours).toContainEqual(
    expect.objectContaining({ route: '/v1/agents/me', status: 429, agent: one.address }),
  )
})
