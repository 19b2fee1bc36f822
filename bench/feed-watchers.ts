/** A process of watchers, for `feed.ts`. */
import { watch } from './feed.ts'

const [host = '', ...numbers] = process.argv.slice(2)
const [number = 0, timed = 0, warmUpMs = 0, ms = 0] = numbers.map(Number)
await watch(host, number, timed, warmUpMs, ms)
