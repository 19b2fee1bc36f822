/**
 * Loaded before the kernel (`node --import`), so that its wall clock can jump: SIGUSR2 shifts it by CLOCK_SHIFT_MS, and the next one back.
 * The clock that never goes back (`performance.now`, timers) is left alone, as the system does when it sets the time.
 */
const SHIFT_MS = Number(process.env.CLOCK_SHIFT_MS ?? 0)
const RealDate = Date
let shiftMs = 0

process.on('SIGUSR2', () => {
  shiftMs = shiftMs === 0 ? SHIFT_MS : 0
})

const now = () => RealDate.now() + shiftMs

globalThis.Date = new Proxy(RealDate, {
  apply: () => new RealDate(now()).toString(),
  construct: (target, values, newTarget) =>
    Reflect.construct(target, values.length === 0 ? [now()] : values, newTarget),
  get: (target, name, receiver) => (name === 'now' ? now : Reflect.get(target, name, receiver)),
})
