/** Who wrote to whom, and how often: as a picture, and as a table. */
import { useSignal } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import { changes, type Network } from '../api.ts'
import { moment } from '../clock.ts'
import { arrived } from '../live.ts'
import type { Picture } from '../network/picture.ts'
import { Address, AddressSearch, Bar, count, counted, Waiting } from '../parts.tsx'
import { change, link, route } from '../route.ts'
import { useThen } from '../then.ts'
import '../network/network.css'

/** Of pairs at once: as many as the service gives. */
const ASKED = 50_000
/** So many rows of the table are shown. */
const SHOWN = 200
/** A network of more pairs than this is asked for anew less often. */
const LARGE = 5_000
const LARGE_REFRESH_MS = 30_000
const REFRESH_MS = 2_500

export function NetworkView() {
  const { parameters } = route.value
  const search = parameters.get('search') ?? ''
  const agent = parameters.get('agent') ?? undefined
  const least = Number(parameters.get('min_count')) || 1
  // As long as it is not known.
  const isLarge = useSignal(true)
  const { data, refused } = useThen<Network>(
    '/observe/network',
    { limit: ASKED, min_count: least > 1 ? least : undefined, agent },
    usePace(isLarge.value ? LARGE_REFRESH_MS : REFRESH_MS),
  )
  useEffect(() => {
    if (data) isLarge.value = data.edges.length > LARGE
  }, [data])
  const found =
    data?.edges.filter(({ from, to }) => from.includes(search) || to.includes(search)) ?? []
  const open = () => {
    const first = data?.nodes.find(({ address }) => address.includes(search))
    if (search !== '' && first) change({ agent: first.address, search: undefined })
  }
  return (
    <>
      <form
        class="filters"
        aria-label="Filters"
        onSubmit={(event) => event.preventDefault()}
        onKeyDown={({ key, target }) => {
          if (key === 'Enter' && target instanceof HTMLInputElement && target.type === 'search')
            open()
        }}
      >
        <AddressSearch label="with the agent" value={search} />
        <label class="field">
          at least so many messages
          <input
            type="number"
            min="1"
            max="999999"
            value={least}
            onChange={({ currentTarget }) =>
              change({ min_count: currentTarget.value || undefined })
            }
          />
        </label>
      </form>
      {agent !== undefined && (
        <p class="only">
          Only <Address of={agent} /> and whom it talks to.{' '}
          <button type="button" class="plain" onClick={() => change({ agent: undefined })}>
            Show everybody
          </button>
        </p>
      )}
      {/* There while the data come, so that what draws them is ready; and what was drawn stays
          until the next is. */}
      {!refused && data?.nodes.length !== 0 && (
        <Drawn network={data} agent={agent} search={search} />
      )}
      {!data && <Waiting refused={refused} />}
      {data && found.length === 0 && (
        <Waiting>No two agents have written to each other like that.</Waiting>
      )}
      {found.length > 0 && <Table edges={found} isAll={!data || data.edges.length < ASKED} />}
    </>
  )
}

/** Counts up when something happened, but not more often than this. */
function usePace(ms: number) {
  const rounds = useSignal(0)
  const last = useRef(Date.now())
  const seen = useRef(changes.peek())
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined
    const stop = changes.subscribe((now) => {
      if (now === seen.current) return
      timer ??= setTimeout(
        () => {
          timer = undefined
          last.current = Date.now()
          seen.current = changes.peek()
          rounds.value += 1
        },
        Math.max(0, last.current + ms - Date.now()),
      )
    })
    return () => {
      stop()
      clearTimeout(timer)
    }
  }, [ms])
  return rounds
}

function Drawn({
  network,
  agent,
  search,
}: {
  network: Network | undefined
  agent: string | undefined
  search: string
}) {
  const stage = useRef<HTMLDivElement>(null)
  const picture = useRef<Picture | undefined>(undefined)
  const state = useSignal<'loading' | 'ready' | 'impossible'>('loading')
  const pointed = useSignal({ words: '', isByKeys: false })
  useEffect(() => {
    let isGone = false
    let isOld = true
    const stop = arrived.subscribe((events) => {
      // What happens now is nothing of the past.
      if (!isOld && moment.value === undefined) picture.current?.pulse(events)
      isOld = false
    })
    const fail = () => {
      picture.current?.close()
      picture.current = undefined
      state.value = 'impossible'
    }
    // Only who opens this view loads what draws it.
    import('../network/picture.ts').then((loaded) => {
      if (isGone || !stage.current) return
      if (!loaded.isSupported()) return fail()
      picture.current = new loaded.Picture(stage.current, {
        onOpen: (address) => change({ agent: address, search: undefined }),
        onLeave: () => change({ agent: undefined, search: undefined }),
        onPoint: (words, isByKeys) => (pointed.value = { words, isByKeys }),
        onFailure: fail,
      })
      state.value = 'ready'
    }, fail)
    return () => {
      isGone = true
      stop()
      picture.current?.close()
    }
  }, [])
  useEffect(() => {
    if (network) picture.current?.show(network, agent)
  }, [network, state.value])
  useEffect(() => picture.current?.find(search), [network, search, state.value])
  if (state.value === 'impossible') {
    return (
      <p class="notice">
        This browser cannot draw the picture of the network. The table has the same in figures.
      </p>
    )
  }
  const { words, isByKeys } = pointed.value
  return (
    <figure class="picture">
      <div
        class="stage"
        ref={stage}
        tabIndex={0}
        role="application"
        aria-label="Picture of the network"
        aria-describedby="network-keys"
      ></div>
      <div class="tools">
        <button
          type="button"
          aria-label="Nearer"
          title="Nearer (+)"
          onClick={() => picture.current?.zoom(1)}
        >
          +
        </button>
        <button
          type="button"
          aria-label="Farther"
          title="Farther (−)"
          onClick={() => picture.current?.zoom(-1)}
        >
          −
        </button>
        <button type="button" title="Show all (0)" onClick={() => picture.current?.showWhole()}>
          Show all
        </button>
        {agent === undefined && (
          <button
            type="button"
            title="Agents find their places anew"
            onClick={() => picture.current?.arrange()}
          >
            Rearrange
          </button>
        )}
      </div>
      <figcaption>
        <p class="pointed">
          {words ||
            (network
              ? `${counted(network.nodes.length, 'agent')}, ${counted(network.edges.length, 'connection')}`
              : '…')}
        </p>
        <p class="hidden" role="status">
          {isByKeys ? words : ''}
        </p>
        <span>
          A dot is an agent, the larger the more it talks;{' '}
          {agent === undefined
            ? 'colours are groups who mostly talk among themselves.'
            : 'the nearer it is, the more the two wrote to each other.'}{' '}
          What moves is a message being sent.
        </span>
        <span id="network-keys" class="keys-hint">
          <kbd>←</kbd> <kbd>→</kbd> <kbd>↑</kbd> <kbd>↓</kbd> move, <kbd>+</kbd> <kbd>−</kbd> zoom,{' '}
          <kbd>0</kbd> shows all, <kbd>n</kbd> <kbd>p</kbd> go from agent to agent, <kbd>Enter</kbd>{' '}
          shows its neighbourhood, <kbd>Esc</kbd> everybody.
        </span>
      </figcaption>
    </figure>
  )
}

function Table({ edges, isAll }: { edges: Network['edges']; isAll: boolean }) {
  const shown = edges.slice(0, SHOWN)
  return (
    <>
      <p class="quiet" role="status">
        The heaviest first: {count(shown.length)}
        {isAll ? ` of ${count(edges.length)}` : ' of many'}.
      </p>
      <table>
        <caption class="hidden">Who wrote to whom</caption>
        <thead>
          <tr>
            <th scope="col">from</th>
            <th scope="col">to</th>
            <th scope="col" class="number">
              messages
            </th>
            <th scope="col" class="wide">
              <span class="hidden">compared</span>
            </th>
          </tr>
        </thead>
        <tbody>
          {shown.map(({ from, to, count: times }) => (
            <tr key={`${from} ${to}`}>
              <td>
                <Address of={from} />
              </td>
              <td>
                <Address of={to} />
              </td>
              <td class="number">
                <a
                  href={link('feed', { agent: from, with: to })}
                  title="The conversation of the two"
                >
                  {count(times)}
                </a>
              </td>
              <td class="wide">
                <Bar value={times} of={edges[0]?.count ?? 1} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </>
  )
}
