import { Counter } from 'prom-client'

export const droppedMessages = new Counter({
  name: 'tabulum_queue_dropped_total',
  help: 'Messages dropped from full pull queues, the oldest first. They stay in the event log.',
})
