import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import type { LoggedEvent } from '../../src/events/event.ts'
import { PROJECTOR_SILENCE_MS, ProjectionBehind } from '../../src/events/progress.ts'
import { Announcements } from '../../src/projector/announcements.ts'
import { registryRead } from '../conformance/support.ts'

/** What NATS does for it: each message to everybody who subscribes to its subject. */
class Hub {
  readonly published: string[] = []
  readonly #subscribers = new Map<string, Set<(text: string) => void>>()

  /** A connection of one process. */
  connect(): ConstructorParameters<typeof Announcements>[0] {
    const publish = (subject: string, text: string) => {
      this.published.push(subject)
      for (const hear of this.#subscribers.get(subject) ?? []) hear(text)
    }
    const subscribe = (
      subject: string,
      { callback }: { callback: (error: null, message: object) => void },
    ) => {
      const subscribers = this.#subscribers.get(subject) ?? new Set()
      this.#subscribers.set(subject, subscribers)
      subscribers.add((text) => callback(null, { json: () => JSON.parse(text) }))
    }
    return { publish, subscribe } as unknown as ConstructorParameters<typeof Announcements>[0]
  }

  process(origin: string) {
    const heard: number[] = []
    return {
      heard,
      announcements: new Announcements(this.connect(), origin, (applied) => heard.push(applied)),
    }
  }
}

let hub: Hub
beforeEach(() => {
  hub = new Hub()
})
afterEach(() => vi.restoreAllMocks())

const eventOf = (origin: string | undefined, seq = 1): LoggedEvent => ({
  seq,
  ...registryRead(),
  ...(origin && { origin }),
})

it('tells those who appended what was applied, and nobody else', async () => {
  const [leader, one, other] = [hub.process('leader'), hub.process('one'), hub.process('other')]
  const waiting = one.announcements.progress.database.reached(7, 5_000)
  leader.announcements.announce('database', { applied: 7 }, [
    eventOf('one', 6),
    eventOf('leader', 7),
  ])
  await waiting
  expect(hub.published).toEqual(['tabulum.projection.database.one'])
  expect([one.heard, other.heard]).toEqual([[7], []])
  expect(other.announcements.progress.database.applied).toBe(0)
})

it('tells everybody where it is not known who appended, and now and then', () => {
  const [leader, one, other] = [hub.process('leader'), hub.process('one'), hub.process('other')]
  leader.announcements.announce('database', { applied: 3 }, [eventOf(undefined)])
  leader.announcements.announce('queues', { applied: 4 })
  for (const { announcements, heard } of [one, other]) {
    expect(announcements.progress.database.applied).toBe(3)
    expect(announcements.progress.queues.applied).toBe(4)
    expect(heard).toEqual([3, 4])
  }
})

it('keeps what was said last of each projection, also by this process', () => {
  const [leader, one] = [hub.process('leader'), hub.process('one')]
  const queues = { generation: 'g', runIds: ['r'] } as never
  leader.announcements.announce('queues', { applied: 1, queues, isHeldUp: true })
  leader.announcements.announce('database', { applied: 1, lost: 2 })
  for (const { announcements } of [leader, one]) {
    expect(announcements.latest('queues')).toEqual({ applied: 1, queues, isHeldUp: true })
    expect(announcements.latest('database')).toEqual({ applied: 1, lost: 2 })
  }
  leader.announcements.announce('queues', { applied: 2 })
  expect(one.announcements.latest('queues')).toEqual({ applied: 2 })
})

it('a projection that is held up keeps nobody waiting', async () => {
  const [leader, one] = [hub.process('leader'), hub.process('one')]
  const waiting = one.announcements.progress.queues.reached(9, 60_000)
  leader.announcements.announce('queues', { applied: 5, isHeldUp: true })
  await expect(waiting).rejects.toThrow(ProjectionBehind)
})

it('is silent until somebody is heard of, and for some time after the last was said', () => {
  let now = 1_000_000
  vi.spyOn(performance, 'now').mockImplementation(() => now)
  const [leader, one] = [hub.process('leader'), hub.process('one')]
  expect(one.announcements.isSilent('database')).toBe(true)
  leader.announcements.announce('database', { applied: 0 })
  now += PROJECTOR_SILENCE_MS - 1
  expect(one.announcements.isSilent('database')).toBe(false)
  expect(one.announcements.isSilent('queues')).toBe(true)
  now += 1
  expect(one.announcements.isSilent('database')).toBe(true)
})
