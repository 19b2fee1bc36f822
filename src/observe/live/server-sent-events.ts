/**
 * Events as Server-Sent Events: `id` is the sequence number, from which a browser goes on by
 * itself.
 */
import type { ServerResponse } from 'node:http'
import { SERVER_SENT_EVENTS } from './encoding.ts'
import { countEnding, ENDINGS, type Ending, type LiveFeed, type WatchOptions } from './live-feed.ts'
import type { StreamTimes } from './stream-times.ts'

/** So long a client waits before it connects again, in ms. */
const RETRY_MS = 2_000

export const SSE_HEADERS = {
  'Content-Type': 'text/event-stream',
  'Cache-Control': 'no-store',
  // Proxies of the kind of nginx would collect what comes.
  'X-Accel-Buffering': 'no',
  'Access-Control-Allow-Origin': '*',
} as const

/**
 * Answers a request with a stream of events. Throws `TooManyWatchers` and `Unavailable`; the
 * request is to be answered then.
 */
export async function openEventStream(
  feed: LiveFeed,
  outgoing: ServerResponse,
  asked: WatchOptions,
  times: StreamTimes,
): Promise<void> {
  const watcher = await feed.join(asked)
  // The client may have gone meanwhile.
  if (outgoing.destroyed) return watcher.leave()
  let pending = 0
  // Node tells when what has been written has not moved on for so long, up to twice that; a large
  // event may take longer in all.
  const write = (bytes: string | Buffer, taken?: () => void) => {
    pending++
    outgoing.setTimeout(times.writeTimeoutMs)
    outgoing.write(bytes, (error) => {
      if (error) return
      pending--
      if (pending === 0) outgoing.setTimeout(0)
      taken?.()
    })
  }
  outgoing.on('timeout', () => end(ENDINGS.slow))
  outgoing.writeHead(200, SSE_HEADERS)
  // With its position from the start, a client that loses the connection before the first event
  // goes on from there all the same.
  let told = watcher.position
  write(`retry: ${RETRY_MS}\nid: ${told}\n\n`)

  let closing: NodeJS.Timeout | undefined
  const end = (ending: Ending) => {
    if (closing) return
    countEnding(ending)
    closing = setTimeout(() => outgoing.destroy(), times.closeMs)
    // To one that reads nothing nothing can be told.
    if (ending === ENDINGS.slow) outgoing.destroy()
    else outgoing.end()
  }
  // Where only events pass that others have to do with, the position moves on all the same: it is
  // told without an event.
  const comment = setInterval(() => {
    if (closing || pending > 0) return
    write(watcher.position === told ? ':\n\n' : `:\nid: ${watcher.position}\n\n`)
    told = watcher.position
  }, times.commentMs)
  const age = setTimeout(end, times.maxAgeMs, ENDINGS.old)
  outgoing.once('close', () => {
    clearInterval(comment)
    clearTimeout(age)
    clearTimeout(closing)
    watcher.leave()
  })
  watcher.start({
    encoding: SERVER_SENT_EVENTS,
    end,
    write: (pieces, taken) => {
      if (closing) return
      for (const [index, piece] of pieces.entries()) {
        write(piece, index === pieces.length - 1 ? taken : undefined)
      }
    },
  })
}
