/**
 * Loaded before the kernel (`node --import`), so that its wall clock can jump: at SIGUSR2 it is
 * shifted by what the file CLOCK_FILE says, in ms. The clock that never goes back
 * (`performance.now`, timers) is left alone, as the system does when it sets the time.
 */
import { readFileSync } from 'node:fs'

const RealDate = Date
let shiftMs = 0

process.on('SIGUSR2', () => {
  const said = readFileSync(process.env.CLOCK_FILE ?? '', 'utf8')
  shiftMs = Number.parseInt(said, 10)
  console.error(`clock: ${said}`)
})

const now = () => RealDate.now() + shiftMs

globalThis.Date = new Proxy(RealDate, {
  apply: () => new RealDate(now()).toString(),
  construct: (target, values, newTarget) =>
    Reflect.construct(target, values.length === 0 ? [now()] : values, newTarget),
  get: (target, name, receiver) => (name === 'now' ? now : Reflect.get(target, name, receiver)),
})
