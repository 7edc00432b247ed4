// As much of a browser as the page's script needs, so that node can run it: a DOM made of the page's tags.
// Usage: node page_dom.js PAGE FRAME…: prints, for the start and each frame, what the script made of the page.
const fs=require("fs"); const html=fs.readFileSync(process.argv[2],"utf8");
class El{constructor(t){this.tag=t;this.attrs={};this.kids=[];this.listeners={};this.style={};this.parentNode=null;this.dataset=new Proxy({}, {get:(_,k)=>this.attrs["data-"+k]});
 const self=this;this.classList={contains:c=>(self.className||"").split(" ").includes(c),toggle:(c,on)=>{}}; }
 get className(){return this.attrs.class||""} set className(v){this.attrs.class=v}
 setAttribute(k,v){this.attrs[k]=String(v)} getAttribute(k){return this.attrs[k]}
 get src(){return this.attrs.src} set src(v){this.attrs.src=v}
 append(...k){for(const e of k) if(e instanceof El){e.parentNode=this;this.kids.push(e)}} prepend(...k){this.append(...k)}
 addEventListener(k,f){this.listeners[k]=f}
 get textContent(){return this.text||""} set textContent(v){this.text=v}
 all(){return this.kids.flatMap(k=>[k,...k.all()])}
 querySelectorAll(s){return s.split(" ").reduce((set,p)=>{const m=p.match(/^(\w*)((?:\.\w+)*)((?:\[[\w-]+\])?)$/);
  return set.flatMap(e=>e.all()).filter(e=>(!m[1]||e.tag===m[1])&&m[2].split(".").filter(Boolean).every(c=>e.className.split(" ").includes(c))&&(!m[3]||m[3].slice(1,-1) in e.attrs))},[this])}
 querySelector(s){return this.querySelectorAll(s)[0]||null}
 closest(t){let e=this;while(e&&e.tag!==t)e=e.parentNode;return e}
 getBoundingClientRect(){return {left:0,top:0,width:1200,height:100}} get viewBox(){return {baseVal:{width:1200}}}}
const root=new El("root");let cur=root;const voids=new Set(["img","meta","input","br"]);
const re=/<script([^>]*)>([\s\S]*?)<\/script>|<style>[\s\S]*?<\/style>|<(\/?)(\w+)((?:\s+[\w-]+(?:="[^"]*")?)*)\s*(\/?)>/g;let m;const scripts=[];
function attrs(e,s){for(const a of (s||"").matchAll(/([\w-]+)(?:="([^"]*)")?/g))e.attrs[a[1]]=a[2]??""}
while((m=re.exec(html))){ if(m[2]!==undefined&&m[0].startsWith("<script")){const e=new El("script");attrs(e,m[1]);e.text=m[2];e.parentNode=cur;cur.kids.push(e);if(!("type" in e.attrs))scripts.push(e)}
 else if(m[4]){ if(m[3]){cur=cur.parentNode||root}else{const e=new El(m[4]);attrs(e,m[5]);e.parentNode=cur;cur.kids.push(e);if(e.tag==="input")e.value=e.attrs.value;if(!m[6]&&!voids.has(m[4]))cur=e}}}
global.requestAnimationFrame=f=>global.raf=f;
global.document={currentScript:null,createElement:t=>new El(t),createElementNS:(_,t)=>new El(t)};
for(const s of scripts){document.currentScript=s;(0,eval)(s.text)}
const sec=root.querySelectorAll("section")[0];
const state=()=>({clock:(sec.querySelector(".clock")||{}).text,discs:sec.querySelectorAll("circle.disc").map(c=>[c.attrs.r,c.attrs.fill]),arrows:sec.querySelectorAll("path.arrow").map(p=>p.attrs.d),
 shots:sec.querySelectorAll("img.shot").map(i=>[i.attrs["data-camera"],i.attrs.src.length]),cursors:sec.querySelectorAll("svg").filter(s=>s.attrs["data-axis"]).map(s=>s.kids.at(-1).attrs.x1)});
const out={start:state()};const slider=sec.querySelectorAll("input")[0];
for(const i of process.argv.slice(3).map(Number)){slider.value=i;slider.oninput();out[i]=state()}
const force=sec.querySelector(".force"); if(force){const b=force.querySelectorAll("button");b[1].onclick();out.force=force.className}
console.log(JSON.stringify(out));
