/** Operators and agents: registering them, knowing them by their tokens, listing them. */
import { hash, randomUUID, timingSafeEqual } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import type { Credentials } from '../access/credentials.ts'
import { ADDRESS, newAddress, newToken, type PresentedToken } from '../access/tokens.ts'
import { atMost } from '../platform/cache.ts'
import type { CursorSeal } from '../platform/cursor.ts'
import type { WebhookTarget } from '../webhooks/webhook-url.ts'
import { pipelineChallenge, stubChallenge } from './challenge.ts'
import type { Agent, RegisteredAgent, RegistryStore } from './registry-store.ts'

/** The challenge is unknown, expired, used, or answered wrongly. */
export class VerificationFailed extends Error {
  override name = 'VerificationFailed'
}

export interface RegistryOptions {
  gate: 'pipeline' | 'stub'
  challengeTtlMs: number
  /**
   * Makes the secret of a new agent's webhook, and the form in which it and the webhook's
   * authorization are stored.
   */
  newWebhookSecret: (
    address: string,
    authorization: string | undefined,
  ) => { secret: string; sealed: string }
  now?: () => number
}

/** What is presented to pass a challenge. */
export interface Verification {
  challengeId: string
  /** As it was sent, of whatever type. */
  response: unknown
}

/** Registered agents, which never change: ~200 bytes each. */
const MAX_KNOWN_AGENTS = 200_000
/** Operators that are yet to be share one operator's part of the hashing. */
const NEW_OPERATORS = 'new operators'
const CURSOR_LIST = 'registry'
/** Of all pages kept, the sum of their agents: some 20 MB. */
const MAX_KNOWN_PAGE_ROWS = 100_000
/** More pages than fit, of one agent each, are not worth their overhead. */
const MAX_KNOWN_PAGES = 5_000

interface Page {
  readonly agents: readonly Agent[]
  readonly nextCursor: string | null
}

export class Registry {
  readonly #store: RegistryStore
  readonly #credentials: Credentials
  readonly #cursors: CursorSeal
  readonly #options: RegistryOptions
  readonly #now: () => number
  readonly #known = new LRUCache<string, RegisteredAgent>(atMost(MAX_KNOWN_AGENTS))
  /**
   * Pages that are full, by where they begin and how long they are. Agents are added at the end of
   * the list and never change, so such a page stays as it is.
   */
  readonly #pages = new LRUCache<string, Page>({
    max: MAX_KNOWN_PAGES,
    maxSize: MAX_KNOWN_PAGE_ROWS,
    sizeCalculation: ({ agents }) => agents.length,
  })
  /** Checks under way by token digest, so that many requests with one cold token cost one check. */
  readonly #verifying = new Map<string, Promise<string | undefined>>()

  constructor(
    parts: { store: RegistryStore; credentials: Credentials; cursors: CursorSeal },
    options: RegistryOptions,
  ) {
    this.#store = parts.store
    this.#credentials = parts.credentials
    this.#cursors = parts.cursors
    this.#options = options
    this.#now = options.now ?? Date.now
  }

  /** Registers an operator. The token in the answer is the only copy. */
  async registerOperator(
    contactHash: string,
  ): Promise<{ operatorId: string; token: PresentedToken }> {
    using turn = this.#credentials.hashing(NEW_OPERATORS)
    const token = newToken('operator')
    const operatorId = randomUUID()
    const tokenHash = await turn.hash(token.secret)
    const data = {
      operator_id: operatorId,
      contact_hash: contactHash,
      accepted_terms: true,
    } as const
    const event = { ts: this.#timestamp(), type: 'operator_created', data } as const
    await this.#store.registerOperator({ lookup: token.lookup, tokenHash }, event)
    return { operatorId, token }
  }

  /** A new challenge, good for one attempt of this operator. */
  async issueChallenge(operatorId: string) {
    const challenge = this.#options.gate === 'stub' ? stubChallenge() : pipelineChallenge()
    const challengeId = randomUUID()
    const answerHash = challenge.answer === undefined ? undefined : sha256(challenge.answer)
    const ttlMs = this.#options.challengeTtlMs
    const expiresAt = await this.#store.saveChallenge({
      challengeId,
      operatorId,
      answerHash,
      ttlMs,
    })
    return {
      challengeId,
      type: challenge.type,
      data: challenge.data,
      expiresAt: expiresAt.toISOString(),
    }
  }

  /**
   * Registers an agent of an operator. `target` has been checked by the caller. Throws
   * `VerificationFailed`; the challenge is used up either way. Throws `VerifierBusy`, before that
   * where too many of this operator's are under way. The token and the webhook's secret in the
   * answer are the only copies.
   */
  async registerAgent(
    operatorId: string,
    verification: Verification,
    target: WebhookTarget | undefined,
  ): Promise<{ address: string; token: PresentedToken; webhookSecret: string | undefined }> {
    using turn = this.#credentials.hashing(operatorId)
    await this.#passChallenge(operatorId, verification)
    const token = newToken('agent')
    const address = newAddress()
    const tokenHash = await turn.hash(token.secret)
    const secret = target && this.#options.newWebhookSecret(address, target.authorization)
    const webhook = target && secret && { url: target.url, sealedSecret: secret.sealed }
    const data = { address, operator_id: operatorId, has_webhook: webhook !== undefined }
    const event = { ts: this.#timestamp(), type: 'agent_registered', agent: address, data } as const
    await this.#store.registerAgent({ lookup: token.lookup, tokenHash, webhook }, event)
    return { address, token, webhookSecret: secret?.secret }
  }

  async #passChallenge(operatorId: string, { challengeId, response }: Verification): Promise<void> {
    if (!UUID.test(challengeId)) throw new VerificationFailed('no such challenge')
    const challenge = await this.#store.takeChallenge(challengeId, operatorId)
    if (!challenge)
      throw new VerificationFailed('no such challenge: it is unknown, expired or already used')
    if (challenge.isExpired) throw new VerificationFailed('the challenge has expired')
    // Without an answer anything passes. With one, what is no text is no answer either, and has
    // used the challenge up.
    if (challenge.answerHash === undefined) return
    if (typeof response !== 'string' || !timingSafeEqual(sha256(response), challenge.answerHash)) {
      throw new VerificationFailed('the response is wrong; ask for a new challenge')
    }
  }

  /**
   * Who holds a token: an operator's id or an agent's address; undefined for a token that is
   * unknown or revoked, which costs one index look-up. Throws `VerifierBusy`.
   */
  authenticate(token: PresentedToken): Promise<string | undefined> {
    const underWay = this.#verifying.get(token.digest)
    if (underWay) return underWay
    const verifying = this.#verify(token).finally(() => this.#verifying.delete(token.digest))
    this.#verifying.set(token.digest, verifying)
    return verifying
  }

  async #verify(token: PresentedToken): Promise<string | undefined> {
    for (const { identity, operatorId, tokenHash } of await this.#store.findByToken(
      token.level,
      token.lookup,
    )) {
      if (await this.#credentials.verify(token.secret, tokenHash, operatorId)) return identity
    }
    return undefined
  }

  /**
   * The agent with an address, from memory where this node has seen it before; undefined if nobody
   * has it.
   */
  async findAgent(address: string): Promise<RegisteredAgent | undefined> {
    const known = this.#known.get(address)
    if (known) return known
    const agent = ADDRESS.test(address) ? await this.#store.findAgent(address) : undefined
    if (agent) this.#known.set(address, agent)
    return agent
  }

  /** A page of all agents, oldest first. Throws `UnknownCursor`. */
  async list(
    limit: number,
    cursor: string | undefined,
  ): Promise<Page & { readonly total: number }> {
    const since =
      cursor === undefined ? 0 : Number(this.#cursors.open(CURSOR_LIST, cursor).toString())
    const name = `${since} ${limit}`
    const known = this.#pages.get(name)
    if (known) return { ...known, total: await this.#store.total() }
    const { agents, total } = await this.#store.page(since, limit + 1)
    const isFull = agents.length > limit
    const last = agents.at(limit - 1)
    const page = {
      agents: agents
        .slice(0, limit)
        .map(({ address, registeredAt }) => ({ address, registeredAt })),
      nextCursor:
        isFull && last ? this.#cursors.seal(CURSOR_LIST, Buffer.from(String(last.seq))) : null,
    }
    if (isFull) this.#pages.set(name, page)
    return { ...page, total }
  }

  #timestamp(): string {
    return new Date(this.#now()).toISOString()
  }
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i

function sha256(text: string): Buffer {
  return hash('sha256', text, 'buffer')
}
