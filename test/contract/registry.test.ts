import { describe, expect, it } from 'vitest'
import { type Agent, Client, percentEncode } from '../../lab/client.ts'
import { ownTarget } from '../support/target.ts'
import { expectRefusal } from './support.ts'

const target = await ownTarget()
const client = new Client(target.baseUrl)
/** More than the default of `limit`. */
const agents = await client.registerAgents(105)
const agent = agents[0] as Agent

/** The whole registry, page by page. `between` runs before each page but the first. */
async function allPages(limit: number, between: () => Promise<void> = async () => {}) {
  const listed: { address: string; registered_at: string }[] = []
  let page = await agent.registry(`?limit=${limit}`)
  listed.push(...page.agents)
  while (page.next_cursor !== null) {
    await between()
    page = await agent.registry(`?limit=${limit}&cursor=${percentEncode(page.next_cursor)}`)
    expect(page.agents.length).toBeLessThanOrEqual(limit)
    listed.push(...page.agents)
  }
  return listed
}

const addresses = (list: readonly { address: string }[]) => list.map(({ address }) => address)

describe('GET /v1/registry', () => {
  it('answers 200 {"agents": [{"address","registered_at"}…], "next_cursor", "total"}', async () => {
    const { agents: listed, next_cursor } = await agent.registry()
    expect(listed.length).toBeGreaterThan(0)
    expect(next_cursor).not.toBeNull()
  })

  it('total counts all agents, whatever the page', async () => {
    expect((await agent.registry('?limit=1')).total).toBe(agents.length)
    expect((await agent.registry('?limit=1000')).total).toBe(agents.length)
  })

  it('lists all agents', async () => {
    expect(new Set(addresses(await allPages(1_000)))).toEqual(new Set(addresses(agents)))
  })

  it('lists the oldest first', async () => {
    const times = (await allPages(1_000)).map(({ registered_at }) => Date.parse(registered_at))
    expect(times).toEqual(times.toSorted((one, two) => one - two))
  })

  it('lists agents that registered one after the other in that order', async () => {
    const before = await client.registerAgent()
    const after = await client.registerAgent()
    agents.push(before, after)
    expect(addresses(await allPages(1_000)).slice(-2)).toEqual([before.address, after.address])
  })

  it('lists a new agent as soon as its registration is answered', async () => {
    for (let round = 0; round < 10; round++) {
      const fresh = await client.registerAgent()
      agents.push(fresh)
      const { agents: listed, total } = await fresh.registry('?limit=1000')
      expect(listed.at(-1)?.address).toBe(fresh.address)
      expect(total).toBe(agents.length)
    }
  })
})

describe('limit', () => {
  it.each([1, 2, 99, 101])('is how many agents a page holds: %s', async (limit) => {
    expect((await agent.registry(`?limit=${limit}`)).agents).toHaveLength(limit)
  })

  it('may be 1000', async () => {
    const { agents: listed, next_cursor } = await agent.registry('?limit=1000')
    expect(listed).toHaveLength(agents.length)
    expect(next_cursor).toBeNull()
  })

  it('is 100 by default', async () => {
    expect((await agent.registry()).agents).toHaveLength(100)
  })

  it.each([
    '',
    '0',
    '-1',
    '1001',
    '99999999999999999999',
    'abc',
    '5.5',
    '5x',
    '0x5',
    'NaN',
    'Infinity',
    'null',
    '%35%00',
    '%EF%BC%95',
    '[]',
  ])('that is anything else means the default: %j', async (limit) => {
    expect((await agent.registry(`?limit=${limit}`)).agents).toHaveLength(100)
  })
})

describe('cursor', () => {
  it.each([1, 7, 50, 100])(
    'leads through all pages of %s, each agent once, in the order of one great page',
    async (limit) => {
      expect(await allPages(limit)).toEqual(await allPages(1_000))
    },
  )

  it('is null on the last page', async () => {
    expect((await agent.registry('?limit=1000')).next_cursor).toBeNull()
  })

  it('may be used again, and gives the same page', async () => {
    const { next_cursor } = await agent.registry('?limit=10')
    const query = `?limit=10&cursor=${percentEncode(next_cursor ?? '')}`
    expect(await agent.registry(query)).toEqual(await agent.registry(query))
  })

  it('may be used by another agent, with another limit', async () => {
    const { next_cursor } = await agent.registry('?limit=10')
    const other = agents[1] as Agent
    const page = await other.registry(`?limit=20&cursor=${percentEncode(next_cursor ?? '')}`)
    expect(addresses(page.agents)).toEqual(addresses(await allPages(1_000)).slice(10, 30))
  })

  it('pages never overlap or skip while agents register', async () => {
    const paging = { isDone: false }
    const registrations = Array.from({ length: 4 }, async () => {
      const registered: Agent[] = []
      while (!paging.isDone) registered.push(await client.registerAgent())
      return registered
    })
    const present = addresses(agents)
    const listed = addresses(await allPages(5))
    paging.isDone = true
    const registered = (await Promise.all(registrations)).flat()
    agents.push(...registered)

    expect(registered.length).toBeGreaterThan(0)
    expect(new Set(listed).size).toBe(listed.length)
    expect(present.filter((address) => !listed.includes(address))).toEqual([])
    const final = addresses(await allPages(1_000))
    expect(listed).toEqual(final.slice(0, listed.length))
    expect(final).toHaveLength(agents.length)
  })

  it.each([
    'garbage',
    '0',
    '1',
    'null',
    'undefined',
    'AAAA',
    'eyJzZXEiOjF9',
    '%00',
    '%F0%9F%98%80',
    'a'.repeat(5_000),
    "'%20OR%201=1",
    '2020-01-01T00:00:00Z',
  ])('that was never issued is 400: %s', async (cursor) => {
    expectRefusal(await agent.request('GET', `/v1/registry?cursor=${cursor}`), 400)
  })

  it('that is the address or the time of an agent is 400', async () => {
    const { address, registered_at } = await agent.me()
    for (const cursor of [address, registered_at, String(Date.parse(registered_at))]) {
      expectRefusal(await agent.request('GET', `/v1/registry?cursor=${percentEncode(cursor)}`), 400)
      const encoded = Buffer.from(cursor).toString('base64url')
      expectRefusal(await agent.request('GET', `/v1/registry?cursor=${encoded}`), 400)
    }
  })

  it('with one character changed, left out or added was never issued: 400', async () => {
    const cursor = (await agent.registry('?limit=10')).next_cursor ?? ''
    const spoiled = [
      `${cursor}A`,
      `A${cursor}`,
      `${cursor}=`,
      ` ${cursor}`,
      cursor.slice(1),
      cursor.slice(0, -1),
    ]
    for (const [index, character] of [...cursor].entries()) {
      for (const other of 'AaBb01_-') {
        if (other !== character)
          spoiled.push(cursor.slice(0, index) + other + cursor.slice(index + 1))
      }
    }
    const answers = await Promise.all(
      spoiled.map(
        async (text) =>
          [text, await agent.request('GET', `/v1/registry?cursor=${percentEncode(text)}`)] as const,
      ),
    )
    expect(answers.filter(([, { status }]) => status !== 400).map(([text]) => text)).toEqual([])
  })

  it('of another listing was never issued here: 400', async () => {
    await Promise.all([agent.write('cursor/1', 'x'), agent.write('cursor/2', 'x')])
    const { next_cursor } = await agent.list('?prefix=cursor/&limit=1')
    expectRefusal(
      await agent.request('GET', `/v1/registry?cursor=${percentEncode(next_cursor ?? '')}`),
      400,
    )
  })
})
