/**
 * What the kernel keeps of its log, on both storages: a new read model is added here, and nowhere
 * else.
 */
import type { ReadModel } from '../events/read-model.ts'
import { messageReadModel } from '../messaging/message-read-model.ts'
import { registryReadModel } from '../registry/registry-read-model.ts'
import { removalReadModel } from '../removal/removal-read-model.ts'
import { stateReadModel } from '../state/state-read-model.ts'

/** @param options.maxQueue messages that a pull queue holds at most */
export function readModels(options: { maxQueue: number }): readonly ReadModel[] {
  return [registryReadModel, stateReadModel, messageReadModel(options), removalReadModel]
}
