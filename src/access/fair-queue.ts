/**
 * What waits for a bcrypt thread. Checks go before hashes: who logs in has been here before, and a
 * registration can wait. Within each kind operators take turns, so that one which asks for a
 * thousand at once keeps nobody waiting but itself.
 */
import { queueOptionsSymbol, type TaskQueue } from 'piscina'

export interface Owned {
  kind: 'compare' | 'hash'
  /** The operator that it is done for. */
  owner: string
}

/**
 * After so many checks in a row a hash has its turn: those who log in all the time must not keep
 * others from registering.
 */
const CHECKS_IN_A_ROW = 8

type Task = Parameters<TaskQueue['push']>[0]

/**
 * The tasks of one owner after the other. A `Map` keeps the order in which owners get their turns.
 */
class Turns {
  readonly #waiting = new Map<string, Task[]>()

  push(owner: string, task: Task): void {
    const tasks = this.#waiting.get(owner)
    if (tasks) tasks.push(task)
    else this.#waiting.set(owner, [task])
  }

  shift(): Task | undefined {
    const [next] = this.#waiting
    if (next === undefined) return undefined
    const [owner, tasks] = next
    const task = tasks.shift()
    this.#waiting.delete(owner)
    if (tasks.length > 0) this.#waiting.set(owner, tasks)
    return task
  }

  /** Returns whether it was there. */
  remove(owner: string, task: Task): boolean {
    const tasks = this.#waiting.get(owner) ?? []
    const index = tasks.indexOf(task)
    if (index < 0) return false
    tasks.splice(index, 1)
    if (tasks.length === 0) this.#waiting.delete(owner)
    return true
  }
}

/**
 * A task queue for Piscina, whose tasks carry an `Owned`. It has no bound of its own: `Credentials`
 * counts what it lets in.
 */
export class FairQueue implements TaskQueue {
  readonly #turns = { compare: new Turns(), hash: new Turns() }
  #size = 0
  #checksInARow = 0

  get size(): number {
    return this.#size
  }

  push(task: Task): void {
    const { kind, owner } = ownedOf(task)
    this.#turns[kind].push(owner, task)
    this.#size++
  }

  shift(): Task | null {
    const { compare, hash } = this.#turns
    const isHashDue = this.#checksInARow >= CHECKS_IN_A_ROW
    const task = (isHashDue ? hash.shift() : undefined) ?? compare.shift() ?? hash.shift()
    if (task === undefined) return null
    this.#checksInARow = ownedOf(task).kind === 'compare' ? this.#checksInARow + 1 : 0
    this.#size--
    return task
  }

  remove(task: Task): void {
    const { kind, owner } = ownedOf(task)
    if (this.#turns[kind].remove(owner, task)) this.#size--
  }
}

function ownedOf(task: Task): Owned {
  return task[queueOptionsSymbol] as Owned
}
