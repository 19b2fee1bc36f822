/** `event-schema`: prints the format of the event log. */
import { eventLineSchema } from '../events/event-schema.ts'

export function printEventSchema(): void {
  console.log(JSON.stringify(eventLineSchema(), null, 2))
}
