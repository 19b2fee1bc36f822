/**
 * The port of the registry: operators and agents with what their tokens are known by, and the
 * challenges that are open. Revoking is not in it: only the command of that name does it, beside
 * the nodes.
 */
import type { Level } from '../access/tokens.ts'
import type { EventOf } from '../events/event.ts'

export interface Agent {
  address: string
  /**
   * RFC 3339, in UTC. Of two agents, the one that comes later in the list never has an earlier
   * time.
   */
  registeredAt: string
}

export interface RegisteredAgent extends Agent {
  hasWebhook: boolean
}

/** What is kept of a token. */
export interface StoredToken {
  lookup: Buffer
  tokenHash: string
}

/** What is kept of an agent beside what its event says. */
export interface AgentSecrets extends StoredToken {
  webhook: { url: string; sealedSecret: string } | undefined
}

/** Who a token may belong to. */
export interface Candidate {
  identity: string
  /** The operator itself, or the agent's. */
  operatorId: string
  tokenHash: string
}

export interface NewChallenge {
  challengeId: string
  operatorId: string
  /** Undefined where any answer passes. */
  answerHash: Buffer | undefined
  ttlMs: number
}

export interface TakenChallenge {
  answerHash: Buffer | undefined
  isExpired: boolean
}

export interface RegistryPage {
  agents: (Agent & { seq: number })[]
  total: number
}

/** Challenges that one operator may have open; a new one beyond that replaces its oldest. */
export const MAX_OPEN_CHALLENGES = 1_000

/** Any of its methods throws `Unavailable` when a part is out. */
export interface RegistryStore {
  /**
   * Appends the event that registers an operator, and keeps its token. Resolves when the operator
   * can be found.
   *
   * @throws ProjectionBehind, Unavailable: it may still be registered, whole
   */
  registerOperator(token: StoredToken, event: EventOf<'operator_created'>): Promise<void>

  /** The same for an agent. */
  registerAgent(secrets: AgentSecrets, event: EventOf<'agent_registered'>): Promise<void>

  /**
   * The registered, unrevoked holders of tokens with this look-up.
   *
   * @param lookup 8 bytes of the token's hash
   * @returns none or one, but for a chance of 2^-64
   */
  findByToken(level: Level, lookup: Buffer): Promise<Candidate[]>

  /** @returns undefined for an address that nobody has */
  findAgent(address: string): Promise<RegisteredAgent | undefined>

  /**
   * A page of agents, the oldest first, and how many there are in all.
   *
   * @param since a sequence number; the page begins behind it
   * @param limit agents at most
   */
  page(since: number, limit: number): Promise<RegistryPage>

  /** How many agents there are. */
  total(): Promise<number>

  /**
   * Keeps a challenge until it is taken, has expired, or is the oldest of more than
   * `MAX_OPEN_CHALLENGES` of its operator.
   *
   * @returns when it expires, by the storage's clock: those of nodes may differ
   */
  saveChallenge(challenge: NewChallenge): Promise<Date>

  /**
   * Takes a challenge of an operator out: whoever asks first gets it, on whichever node.
   *
   * @returns undefined if there is none
   */
  takeChallenge(challengeId: string, operatorId: string): Promise<TakenChallenge | undefined>
}
