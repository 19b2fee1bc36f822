/** Files that are served as they are. */

export interface StaticFile {
  readonly path: string
  readonly bytes: Uint8Array<ArrayBuffer>
  readonly gzipped: Uint8Array<ArrayBuffer>
  /** With `Content-Type`, and an `ETag` by which a client asks whether it has the file already. */
  readonly headers: Readonly<Record<string, string>>
}

/** 304 to who has it. */
export function answerWithFile(
  request: Request,
  { bytes, gzipped, headers }: StaticFile,
): Response {
  const known = request.headers.get('if-none-match')?.split(',') ?? []
  // One that was compressed on the way comes back as a weak one.
  const isKnown = known.some((tag) => tag.trim().replace(/^W\//, '') === headers.ETag)
  if (isKnown) return new Response(null, { status: 304, headers })
  const accepts = /\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))/i.test(
    request.headers.get('accept-encoding') ?? '',
  )
  const body = accepts ? gzipped : bytes
  return new Response(body, {
    headers: {
      ...headers,
      ...(accepts && { 'Content-Encoding': 'gzip', ETag: `W/${headers.ETag}` }),
      'Content-Length': String(body.byteLength),
    },
  })
}
