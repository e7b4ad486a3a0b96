// The page's own behaviour: live rows, clocks, keys and copying. Everything works without it but live updates.
// Text of workloads arrives as HTML that the server has escaped; nothing here builds markup from data.
'use strict';
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const skew = Number(document.body.dataset.now) - Date.now();
  const now = () => Date.now() + skew;

  // Clocks.
  const span = (ms) => {
    const s = Math.max(0, Math.floor(ms / 1000));
    const two = (n) => String(n).padStart(2, '0');
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor(s / 60) % 60)} min`;
    return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
  };
  const local = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' });
  const zone = new Intl.DateTimeFormat(undefined, { dateStyle: 'full', timeStyle: 'long' });
  const clocks = () => {
    for (const t of $$('time[data-since]')) {
      const since = Number(t.dataset.since);
      t.textContent = span(now() - since) + ('ago' in t.dataset ? ' ago' : '');
      t.title ||= zone.format(since);
    }
    for (const t of $$('time[data-until]')) {
      t.textContent = span(Number(t.dataset.until) - now());
      t.title ||= zone.format(Number(t.dataset.until));
    }
    for (const t of $$('time[data-at]:not([title])')) {
      t.textContent = local.format(Number(t.dataset.at));
      t.title = zone.format(Number(t.dataset.at));
    }
  };
  clocks();
  setInterval(clocks, 1000);
  document.addEventListener('htmx:afterSettle', clocks);

  // Copying, and the secret of the set-up link, which never leaves the browser in a URL.
  document.addEventListener('click', async (event) => {
    const button = event.target.closest('[data-copy]');
    if (!button) return;
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy'; }, 2000);
  });
  for (const pre of $$('pre.copy')) {
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'quiet small';
    button.textContent = 'Copy';
    button.dataset.copy = pre.textContent.trim();
    pre.append(button);
  }
  // A link from elsewhere comes without the cookie (SameSite=Strict): whoever is signed in goes on from here.
  const next = $('input[name="next"]');
  if (next && !$('.error')) {
    fetch('/login/state').then((r) => { if (r.status === 204) location.replace(next.value); }).catch(() => {});
  }
  const secret = $('[data-from-fragment]');
  if (secret && location.hash.length > 1) {
    secret.value = location.hash.slice(1);
    history.replaceState(null, '', location.pathname);
    $('#username').focus();
  }

  // Live rows. A row that ended stays where it is and says so: nothing moves under the pointer.
  const page = $('[data-live]');
  const list = $('#queue');
  const open = () => $('#pane .card, .single .card');
  const say = (state, text) => {
    const live = $('#live');
    live.dataset.state = state;
    if (live.textContent !== text) live.textContent = text;
    document.body.dataset.live = state;
    guardButtons();
  };
  // Answering needs to know that the question still stands.
  const guardButtons = () => {
    if (!page) return;
    const sure = document.body.dataset.live === 'live';
    for (const b of $$('[data-answer]')) b.disabled = !sure;
    for (const p of $$('.unsure')) p.hidden = sure || document.body.dataset.live === 'connecting';
  };
  const mark = () => {
    const card = open();
    for (const row of $$('[data-row]', list ?? undefined)) {
      const on = card && row.dataset.row === card.dataset.request;
      row.classList.toggle('selected', Boolean(on));
      if (on) $('a', row).setAttribute('aria-current', 'true'); else $('a', row)?.removeAttribute('aria-current');
    }
  };
  const count = () => {
    if (!list) return;
    const n = $$('[data-state="pending"]', list).length;
    const badge = $('#pending-count');
    badge.textContent = n;
    badge.hidden = n === 0;
    document.title = (n ? `(${n}) ` : '') + 'Queue · Guard';
    $('#empty').hidden = list.children.length > 0;
  };
  const wide = matchMedia('(min-width: 60rem)');
  const show = (row) => {
    const link = $('a', row);
    if (wide.matches && $('#pane')) htmx.ajax('GET', link.getAttribute('hx-get'), { target: '#pane', swap: 'innerHTML show:none' });
    else location.assign(link.href);
  };
  const refresh = (id, version) => {
    const answer = $(`[data-answer-of="${CSS.escape(id)}"]`);
    if (!answer || answer.dataset.version === version) return;
    htmx.ajax('GET', `/requests/${encodeURIComponent(id)}/answer`, { target: `#answer-${id}`, swap: 'outerHTML show:none' });
  };
  const changed = (event) => {
    const { id, state, version, row } = JSON.parse(event.data);
    if (list) {
      const old = document.getElementById(`row-${id}`);
      if (old || state === 'pending') {
        const box = document.createElement('template');
        box.innerHTML = row;
        const fresh = box.content.firstElementChild;
        const focused = old?.contains(document.activeElement);
        if (old) old.replaceWith(fresh); else list.append(fresh);
        htmx.process(fresh);
        if (focused) $('a', fresh).focus();
        if (!open() && wide.matches && state === 'pending') show(fresh);
      }
      mark();
      count();
    }
    refresh(id, version);
    clocks();
  };
  // Lists of changes and alarms are asked for again: after a lost connection too.
  const reload = () => {
    const rows = $('[data-reload]');
    if (rows) htmx.ajax('GET', rows.dataset.reload, { target: rows, swap: 'innerHTML show:none' });
  };
  const listen = () => {
    let wait = 1000;
    let last = '';
    const connect = () => {
      const source = new EventSource(page.dataset.live + (last ? `?since=${last}` : ''));
      source.addEventListener('ready', () => { wait = 1000; say('live', 'live'); reload(); });
      source.addEventListener('changes', reload);
      source.addEventListener('request', (event) => { last = event.lastEventId; changed(event); });
      source.addEventListener('error', () => {
        source.close();
        say('lost', 'connection lost, trying again…');
        // Signed out meanwhile: the page itself says so.
        setTimeout(async () => {
          const state = await fetch('/login/state').catch(() => null);
          if (state?.status === 200) location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
          else connect();
        }, wait + Math.random() * 500);
        wait = Math.min(wait * 2, 15000);
      });
    };
    connect();
    addEventListener('pagehide', () => say('connecting', 'connecting…'));
  };
  if (page) {
    mark();
    guardButtons();
    listen();
    document.addEventListener('htmx:afterSettle', () => {
      guardButtons();
      mark();
      // A card that was answered here: its element says the new state too.
      for (const a of $$('[data-answer-of]')) a.closest('.card').dataset.state = a.dataset.cardState;
    });
    // On a narrow screen a row is a plain link.
    document.addEventListener('htmx:beforeRequest', (event) => {
      const link = event.detail.elt;
      if (!wide.matches && link.matches('[data-row] a')) {
        event.preventDefault();
        location.assign(link.href);
      }
    });
  }

  // Keys: j k select, o open, a d to the answer, / search. Answering itself takes Enter on the button.
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.('input, textarea, select')) return;
    const rows = $$('[data-row]', list ?? undefined);
    const at = rows.findIndex((row) => row.classList.contains('selected') || row.contains(document.activeElement));
    const go = (row) => { if (!row) return; $('a', row).focus(); if (list && wide.matches) show(row); };
    switch (event.key) {
      case 'j': go(rows[Math.min(at + 1, rows.length - 1)]); break;
      case 'k': go(rows[Math.max(at - 1, 0)]); break;
      case 'o': if (rows[at]) location.assign($('a', rows[at]).href); break;
      case 'a': $('[data-answer="approve"]')?.focus(); break;
      case 'd': $('.answer input[name="reason"]')?.focus(); break;
      case '/': if ($('[data-search]')) $('[data-search]').focus(); else location.assign('/history#search'); break;
      default: return;
    }
    event.preventDefault();
  });
  if (location.hash === '#search') $('[data-search]')?.focus();
})();
