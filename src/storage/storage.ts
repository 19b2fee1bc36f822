/**
 * What a kernel keeps its data in: the ports of all capabilities, made once a process. The same for
 * one machine and for a cluster.
 */
import type { Admission, Allowance, Category } from '../access/admission.ts'
import type { Config } from '../config.ts'
import type { EventLog } from '../events/event-log.ts'
import type { Applied } from '../events/progress.ts'
import type { Job } from '../maintenance/job.ts'
import type { MessageQueue } from '../messaging/message-queue.ts'
import type { ReadinessChecks } from '../platform/readiness.ts'
import type { SigningKeys } from '../platform/signing-keys.ts'
import type { RegistryStore } from '../registry/registry-store.ts'
import type { Removals } from '../removal/removals.ts'
import type { StateStore } from '../state/state-store.ts'
import type { Doorbell } from '../webhooks/doorbell.ts'
import type { WebhookLanes } from '../webhooks/webhook-lanes.ts'
import type { SealedSecrets } from '../webhooks/webhook-secrets.ts'

export interface Storage {
  readonly log: EventLog
  readonly registry: RegistryStore
  readonly state: StateStore
  readonly queue: MessageQueue
  /** Of the projection that messages are received from. */
  readonly queueProgress: Applied
  readonly admission: Admission
  readonly lanes: WebhookLanes
  /** Of the projection that fills the lanes. */
  readonly laneProgress: Applied
  /** Rings when there is something new in the lanes. */
  readonly pushes: Doorbell
  /** What the operator of the infrastructure removed. */
  readonly removals: Removals
  readonly secrets: SealedSecrets
  readonly keys: SigningKeys
  readonly checks: ReadinessChecks
  /** What is tidied now and then. */
  readonly jobs: readonly Job[]
  /** For an orderly stop, when nothing is under way any more. */
  close(): Promise<void>
}

const MINUTE_MS = 60_000

/** How often each kind of request may be made. */
export function allowances(config: Config): Record<Category | 'operator_registration', Allowance> {
  const perMinute = (limit: number) => ({ limit, periodMs: MINUTE_MS })
  return {
    message: perMinute(config.RATE_LIMIT_MESSAGE_PER_MIN),
    state_read: perMinute(config.RATE_LIMIT_STATE_READ_PER_MIN),
    state_write: perMinute(config.RATE_LIMIT_STATE_WRITE_PER_MIN),
    registry_read: perMinute(config.RATE_LIMIT_REGISTRY_READ_PER_MIN),
    operator_registration: {
      limit: config.RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP,
      periodMs: 60 * MINUTE_MS,
    },
  }
}
