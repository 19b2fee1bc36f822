import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { Client } from '../../lab/client.ts'
import { sharedTarget } from '../support/target.ts'

const target = await sharedTarget()
const client = new Client(target.baseUrl)

describe('GET /v1/health', () => {
  it('answers 200 {"status":"ok","version":"0.1.0"}, the version of the contract', async () => {
    const answer = await client.request('GET', '/v1/health')
    expect(answer.as(200, z.looseObject({}))).toMatchObject({ status: 'ok', version: '0.1.0' })
  })

  it('needs no auth, and does not mind a wrong one', async () => {
    const answer = await client.request('GET', '/v1/health', { token: 'nonsense' })
    expect(answer.status).toBe(200)
  })
})
