/**
 * The plan of a society: who lives in it, and what each of them does when. The same seed and number
 * of agents make the same plan, whatever the kernel answers; society.ts carries it out.
 */
import {
  type Conversation,
  CRAFTS,
  type Craft,
  DONE,
  FIRST_NAMES,
  GOODS,
  GREETINGS,
  LAST_NAMES,
  NOTES,
  PLACES,
  PLAN_LINES,
  PROJECTS,
  SKIES,
  TALK,
  TASK_NOTES,
  WELCOME,
  WORK,
} from './words.ts'

/** In minutes of the society. */
export const DAY = 24 * 60
const START = 8 * 60
/**
 * So often it is a member's turn to begin something, in minutes; most turns pass (`#wakefulness`).
 */
const BETWEEN_TURNS = 70
/** The founders are there at the start; the others come in the first days. */
const FOUNDERS = 0.6
const ARRIVALS_END = 2 * DAY
/** What is kept of a project, a market and notes: what is older is cleared away. */
const MAX_TASKS = 12
const MAX_OFFERS = 20
const MAX_NOTES = 200

export const MOST_AGENTS = FIRST_NAMES.length * LAST_NAMES.length

export interface Member {
  readonly name: string
  readonly craft: Craft
  /** 1 on average: how much it does. */
  readonly vigour: number
  readonly friends: readonly number[]
  readonly projects: readonly number[]
}

export type Act =
  | { readonly kind: 'arrive' }
  | { readonly kind: 'say'; readonly to: number; readonly text: string }
  | { readonly kind: 'fetch' }
  | { readonly kind: 'write'; readonly key: string; readonly value: string }
  | { readonly kind: 'delete'; readonly key: string }
  | { readonly kind: 'read'; readonly key: string }
  | { readonly kind: 'look up' }

export interface Step {
  /** Minutes of the society since its first midnight. */
  readonly at: number
  /** Index of a member. */
  readonly who: number
  readonly act: Act
}

interface Project {
  readonly name: string
  readonly members: readonly number[]
  readonly tasks: Task[]
  last: number
}

interface Task {
  readonly number: number
  readonly title: string
  state: 'open' | 'in hand' | 'done'
}

/** What a template is filled with. */
type Words = Readonly<Record<string, string>>

export const slug = (name: string) => name.toLowerCase().replaceAll(' ', '-')
export const clockOf = (at: number) =>
  `${String(Math.floor((at % DAY) / 60)).padStart(2, '0')}:${String(Math.floor(at % 60)).padStart(2, '0')}`
export const dayOf = (at: number) => 1 + Math.floor(at / DAY)

/** Mulberry32 (T. Ettinger, 2017): numbers from 0 to below 1. */
function seeded(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

export class Society {
  readonly members: readonly Member[]
  readonly #projects: readonly Project[]
  readonly #random: () => number
  /** What is planned already, the next last. */
  readonly #ahead: Step[] = []
  readonly #present: number[] = []
  readonly #isPresent = new Set<number>()
  readonly #offers: string[] = []
  readonly #notes: string[] = []

  /** @param agents how many live in it in the end: 2 to `MOST_AGENTS` @param seed a whole number */
  constructor(agents: number, seed: number) {
    this.#random = seeded(seed)
    const names = this.#names(agents)
    // Neighbours in number share a craft, so that each craft is a stretch of members.
    const share = Math.ceil(agents / Math.min(CRAFTS.length, Math.max(1, Math.floor(agents / 4))))
    const craftOf = (index: number) => Math.floor(index / share)
    this.#projects = this.#found(agents)
    this.members = names.map((name, index) => ({
      name,
      craft: CRAFTS[craftOf(index) % CRAFTS.length] as Craft,
      vigour: 0.3 + 2.8 * this.#random() ** 3,
      friends: Array.from({ length: 2 + this.#below(5) }, () =>
        this.#random() < 0.8 ? craftOf(index) * share + this.#below(share) : this.#below(agents),
      ).filter((friend) => friend < agents && friend !== index),
      projects: this.#projects.flatMap(({ members }, project) =>
        members.includes(index) ? [project] : [],
      ),
    }))
  }

  /** All that happens, in order, without an end. */
  *steps(): Generator<Step, never> {
    const order = this.#shuffled(this.members.map((_, index) => index))
    const founders = Math.max(2, Math.round(order.length * FOUNDERS))
    order.forEach((who, place) => {
      const waits = (place - founders) / Math.max(1, order.length - founders)
      this.#add(START + (place < founders ? place * 0.5 : waits * ARRIVALS_END), who, {
        kind: 'arrive',
      })
    })
    for (let at = START; ; ) {
      at += (-Math.log(1 - this.#random()) * BETWEEN_TURNS) / Math.max(1, this.#present.length)
      for (let next = this.#ahead.at(-1); next && next.at <= at; next = this.#ahead.at(-1)) {
        this.#ahead.pop()
        if (next.act.kind === 'arrive') this.#settle(next)
        yield next
      }
      const who = this.#present[this.#below(this.#present.length)]
      // Who does less, or would sleep now, lets most of its turns pass.
      if (who !== undefined && this.#random() < this.#wakefulness(who, at)) this.#undertake(who, at)
    }
  }

  #names(agents: number): string[] {
    const all = FIRST_NAMES.flatMap((first) => LAST_NAMES.map((last) => `${first} ${last}`))
    return this.#shuffled(all).slice(0, agents)
  }

  /** Projects, each with members of neighbouring crafts; the first of them leads. */
  #found(agents: number): Project[] {
    return Array.from({ length: Math.max(1, Math.round(agents / 12)) }, (_, index) => {
      const round = Math.floor(index / PROJECTS.length)
      const name = `${PROJECTS[index % PROJECTS.length]}${round === 0 ? '' : `-${round + 1}`}`
      const centre = this.#below(agents)
      const reach = Math.max(6, Math.round(agents / 14))
      const members = Array.from(
        { length: 4 + this.#below(10) },
        () => (centre + this.#below(2 * reach) - reach + agents) % agents,
      )
      return { name, members: [...new Set(members)], tasks: [], last: 0 }
    })
  }

  #settle({ at, who }: Step): void {
    const { craft } = this.#member(who)
    const welcome = `notes/${slug(craft.name)}/welcome`
    const isFirst = !this.#present.some((other) => this.#member(other).craft === craft)
    this.#present.push(who)
    this.#isPresent.add(who)
    if (isFirst) {
      const value = fill(WELCOME, this.#words(who, who, at))
      this.#add(at + 2, who, { kind: 'write', key: welcome, value })
    }
    this.#add(at + 4, who, { kind: 'look up' })
    this.#add(at + 6, who, { kind: 'read', key: welcome })
    const friend = this.#partner(who)
    if (friend !== undefined) this.#converse(at + 10, who, friend, GREETINGS[1] as Conversation)
  }

  #wakefulness(who: number, at: number): number {
    const { craft, vigour } = this.#member(who)
    const [from, to] = craft.hours
    const hour = (at % DAY) / 60
    const isUp = from < to ? hour >= from && hour < to : hour >= from || hour < to
    return (vigour / 3.1) * (isUp ? 1 : 0.04)
  }

  #undertake(who: number, at: number): void {
    const chance = this.#random()
    const partner = this.#partner(who)
    const isMorning = at % DAY < 10 * 60
    if (chance < 0.1) this.#look(who, at)
    else if (chance < 0.4 && this.#member(who).projects.length > 0) this.#work(who, at)
    else if (chance < 0.6) this.#writeOfCraft(who, at)
    else if (partner !== undefined) {
      const isGreeting = isMorning && this.#random() < 0.4
      this.#converse(at, who, partner, isGreeting ? (GREETINGS[0] as Conversation) : this.#of(TALK))
    }
  }

  /**
   * Somebody to talk to who is there: a friend, somebody of a project, somebody of the craft,
   * rarely anybody.
   */
  #partner(who: number): number | undefined {
    const { friends, projects, craft } = this.#member(who)
    const chance = this.#random()
    const mates = projects.flatMap((project) => this.#project(project).members)
    const colleagues = this.#present.filter((other) => this.#member(other).craft === craft)
    const circle =
      chance < 0.55 ? friends : chance < 0.85 ? mates : chance < 0.97 ? colleagues : this.#present
    const others = circle.filter((other) => other !== who && this.#isPresent.has(other))
    return others.length === 0 ? undefined : this.#of(others)
  }

  /** Two talk in turn; whoever is spoken to fetches the message before it answers. */
  #converse(from: number, one: number, other: number, turns: Conversation, more: Words = {}): void {
    const topic = this.#words(one, other, from)
    let at = from
    turns.forEach((wordings, turn) => {
      // Not every conversation comes to its end.
      if (turn > 1 && this.#random() < 0.15) return
      const [speaker, listener] = turn % 2 === 0 ? [one, other] : [other, one]
      const names = { me: this.#member(speaker).name, other: this.#first(listener) }
      this.#add(at, speaker, {
        kind: 'say',
        to: listener,
        text: fill(this.#of(wordings), { ...topic, ...more, ...names }),
      })
      at += 1 + this.#below(6)
      this.#add(at, listener, { kind: 'fetch' })
      at += 1 + this.#below(9)
    })
  }

  #look(who: number, at: number): void {
    const chance = this.#random()
    const { projects, craft } = this.#member(who)
    const [project] = projects
    const folder = `notes/${slug(craft.name)}/`
    const notes = this.#notes.filter((key) => key.startsWith(folder))
    if (chance < 0.25) this.#add(at, who, { kind: 'look up' })
    else if (chance < 0.6 && project !== undefined)
      this.#add(at, who, { kind: 'read', key: `projects/${this.#project(project).name}/plan` })
    else
      this.#add(at, who, {
        kind: 'read',
        key: notes.length > 0 ? this.#of(notes) : `${folder}welcome`,
      })
  }

  /** A step in one of its projects: a plan, a new task, or one that goes on. */
  #work(who: number, at: number): void {
    const { projects, name } = this.#member(who)
    const project = this.#project(this.#of(projects))
    const words = this.#words(who, who, at)
    if (project.last === 0 || this.#random() < 0.08) {
      const lines = [1, 2, 3].map(
        (number) => `${number}. ${fill(this.#of(PLAN_LINES), this.#words(who, who, at))}`,
      )
      const value = `Plan of the ${spoken(project.name)}, day ${dayOf(at)}\n\n${lines.join('\n')}\n\n${name}`
      this.#add(at, who, { kind: 'write', key: `projects/${project.name}/plan`, value })
    }
    const unfinished = project.tasks.filter(({ state }) => state !== 'done')
    const isNew =
      unfinished.length === 0 || (unfinished.length < MAX_TASKS / 2 && this.#random() < 0.3)
    const task: Task = isNew
      ? { number: project.last + 1, title: words.task ?? '', state: 'open' }
      : this.#of(unfinished)
    if (isNew) {
      project.last = task.number
      project.tasks.push(task)
    } else {
      task.state = task.state === 'open' ? 'in hand' : 'done'
    }
    const key = `projects/${project.name}/tasks/${task.number}`
    const note = fill(this.#of(TASK_NOTES), words)
    const value = JSON.stringify(
      { title: task.title, state: task.state, by: name, note, day: dayOf(at) },
      null,
      2,
    )
    this.#add(at + 1, who, { kind: 'write', key, value })
    const mates = project.members.filter((mate) => mate !== who && this.#isPresent.has(mate))
    const more = {
      task: task.title,
      number: String(task.number),
      project: spoken(project.name),
      key,
    }
    const mate = task.state === 'done' ? mates[0] : mates[this.#below(Math.max(1, mates.length))]
    if (mate !== undefined && (task.state === 'done' || this.#random() < 0.5))
      this.#converse(at + 3, who, mate, task.state === 'done' ? DONE : this.#of(WORK), more)
    if (mate !== undefined && isNew) this.#add(at + 2, mate, { kind: 'read', key })
    if (project.tasks.length > MAX_TASKS) this.#clear(project, who, at + 5)
  }

  /** The oldest finished task goes. */
  #clear(project: Project, who: number, at: number): void {
    const place = project.tasks.findIndex(({ state }) => state === 'done')
    const [task] = place < 0 ? [] : project.tasks.splice(place, 1)
    if (task)
      this.#add(at, who, { kind: 'delete', key: `projects/${project.name}/tasks/${task.number}` })
  }

  /** What people of a craft write for all: the weather, offers, notes. */
  #writeOfCraft(who: number, at: number): void {
    const { name } = this.#member(who).craft
    if (name === 'weather watchers') this.#watchWeather(who, at)
    else if (name === 'traders') this.#trade(who, at)
    else this.#writeNote(who, at)
  }

  #watchWeather(who: number, at: number): void {
    const { place = '', sky } = this.#words(who, who, at)
    const value = {
      place,
      sky,
      degrees: this.#below(24) - 2,
      at: `day ${dayOf(at)}, ${clockOf(at)}`,
    }
    this.#add(at, who, {
      kind: 'write',
      key: `weather/${slug(place)}`,
      value: JSON.stringify(value),
    })
  }

  #writeNote(who: number, at: number): void {
    const { craft, name } = this.#member(who)
    const key = `notes/${slug(craft.name)}/day-${dayOf(at)}-${slug(this.#first(who))}`
    const note = fill(this.#of(NOTES), this.#words(who, who, at))
    this.#add(at, who, { kind: 'write', key, value: `${note}\n\n${name}` })
    if (!this.#notes.includes(key)) this.#notes.push(key)
    const oldest = this.#notes.length > MAX_NOTES ? this.#notes.shift() : undefined
    if (oldest !== undefined) this.#add(at, who, { kind: 'delete', key: oldest })
  }

  #trade(who: number, at: number): void {
    const { goods = '' } = this.#words(who, who, at)
    if (this.#offers.length > MAX_OFFERS || (this.#offers.length > 3 && this.#random() < 0.4)) {
      const [sold] = this.#offers.splice(this.#below(this.#offers.length), 1)
      if (sold !== undefined) this.#add(at, who, { kind: 'delete', key: sold })
      return
    }
    const key = `market/offers/${slug(goods)}-${slug(this.#first(who))}`
    const value = {
      goods,
      amount: 1 + this.#below(40),
      price: 1 + this.#below(12),
      by: this.#member(who).name,
    }
    this.#add(at, who, { kind: 'write', key, value: JSON.stringify(value) })
    if (!this.#offers.includes(key)) this.#offers.push(key)
  }

  #words(one: number, other: number, at: number): Words {
    const { craft } = this.#member(one)
    const names = [this.#first(one), this.#first(other)]
    const third = Array.from({ length: 8 }, () => this.#first(this.#of(this.#present))).find(
      (name) => !names.includes(name),
    )
    const hour = Math.floor((at % DAY) / 60) + 24
    const time = (hours: number) => `${hours % 24}:${this.#of(['00', '15', '30', '45'])}`
    return {
      craft: craft.name,
      craftKey: slug(craft.name),
      otherCraft: this.#of(CRAFTS).name,
      subject: this.#of(craft.subjects),
      task: this.#of(craft.tasks),
      place: this.#of(PLACES),
      goods: this.#of(GOODS),
      sky: this.#of(SKIES),
      hour: time(hour + 1 + this.#below(5)),
      earlier: time(hour - 1 - this.#below(5)),
      third: third ?? 'a friend',
    }
  }

  #add(at: number, who: number, act: Act): void {
    let low = 0
    let high = this.#ahead.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#ahead[middle] as Step).at > at) low = middle + 1
      else high = middle
    }
    this.#ahead.splice(low, 0, { at, who, act })
  }

  #member(index: number): Member {
    return this.members[index] as Member
  }
  #project(index: number): Project {
    return this.#projects[index] as Project
  }
  #first(index: number): string {
    return this.#member(index).name.split(' ')[0] ?? ''
  }
  #below(bound: number): number {
    return Math.floor(this.#random() * bound)
  }
  /** One of a list that is not empty. */
  #of<T>(list: readonly T[]): T {
    return list[this.#below(list.length)] as T
  }
  #shuffled<T>(list: readonly T[]): T[] {
    return list
      .map((item) => ({ item, place: this.#random() }))
      .sort((one, other) => one.place - other.place)
      .map(({ item }) => item)
  }
}

const spoken = (name: string) => name.replaceAll('-', ' ')

/** A sentence of a template: what it begins with is in capitals, whatever was filled in. */
function fill(template: string, words: Words): string {
  const text = template.replace(/\{(\w+)\}/g, (_, name: string) => {
    const word = words[name]
    if (word === undefined) throw new Error(`no word for {${name}} in: ${template}`)
    return word
  })
  return text.replace(
    /(^|[.!?] )(\p{Ll})/gu,
    (_, before: string, letter: string) => before + letter.toUpperCase(),
  )
}
